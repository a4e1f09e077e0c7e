"""Small models with random weights, in the forms that Stable Diffusion has."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gradina.diffusion.schedule import sd_schedule
from gradina.models.clip import TextConfig, TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.request import Defaults
from gradina.weights.components import Components
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import write_file

UNET = UNetConfig(widths=(32, 64), attention=(True, False), heads=(8, 8), blocks=1, context=64, size=8)
TEXT = TextConfig(vocabulary=49408, width=64, inner=96, layers=2, heads=1)
FORMS = {
    "sd1": (UNET, TEXT),
    "sd2": (replace(UNET, heads=(1, 1), widths=(64, 64), linear=True), replace(TEXT, activation="gelu", layers=3)),
    "inpainting": (replace(UNET, channels=9, attention=(False, True), blocks=2), TEXT),
    "three levels": (replace(UNET, widths=(32, 64, 32), attention=(True, True, False), heads=(8,) * 3, depth=2), TEXT),
    "without time": (replace(UNET, time=False), TEXT),
}


def make(form: str) -> Components:
    unet, text = FORMS[form]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Components(
            tokenizer=Tokenizer.clip(pad=0 if form == "sd2" else None),
            text=scatter(TextTower(text)),
            vae=scatter(AutoencoderKL(VAEConfig(widths=(32, 64), blocks=1))),
            unet=scatter(UNet(unet)),
            schedule=sd_schedule(),
            prediction="v" if form == "sd2" else "eps",
            defaults=Defaults(steps=7, guidance_scale=3, sampler="ddim", schedule="trailing", width=16, height=16),
            name="tiny",
        )


def scatter(network: nn.Module) -> nn.Module:
    """Every parameter takes random values, so that no two are alike."""
    for p in network.parameters():
        p.data = torch.randn(p.shape) * 0.1
    return network.eval()


def assert_same(one: Components, two: Components) -> None:
    """Equal to the bit, the files they came from aside."""
    for a, b in ((one.unet, two.unet), (one.vae, two.vae), (one.text, two.text)):
        assert a.config == b.config
        left, right = a.state_dict(), b.state_dict()
        assert left.keys() == right.keys()
        assert all(x.dtype == right[name].dtype and torch.equal(x, right[name]) for name, x in left.items())
    assert torch.equal(one.schedule.sigmas, two.schedule.sigmas)
    assert (one.prediction, one.defaults) == (two.prediction, two.defaults)
    text = "a lighthouse, oil on canvas!"
    assert torch.equal(one.tokenizer(text), two.tokenizer(text))


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Components]:
    made: dict[str, Components] = {}
    return lambda form="sd1": made[form] if form in made else made.setdefault(form, make(form))


@pytest.fixture(scope="session")
def same() -> Callable[[Components, Components], None]:
    return assert_same


@pytest.fixture(scope="session")
def forms() -> tuple[str, ...]:
    return tuple(FORMS)


@pytest.fixture(scope="session")
def saved(tiny: Callable[[str], Components], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy of a small model, as a folder or a single file, at a path; each is written once."""
    store = tmp_path_factory.mktemp("saved")

    def save(path: Path, form: str = "sd1") -> Path:
        kept = store / f"{form}{path.suffix}"
        if not kept.exists():
            (write_file if path.suffix else write_folder)(tiny(form), kept)
        return Path((shutil.copyfile if path.suffix else shutil.copytree)(kept, path))

    return save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"
