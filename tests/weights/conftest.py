"""Small models with random weights, in the forms of Stable Diffusion, and what several test files use."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradina.adapters.lora import ATTENTION, LoRA, LoRAWeights, initial_lora
from gradina.diffusion.schedule import sd_schedule
from gradina.errors import WeightsError
from gradina.models.clip import TextConfig, TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.pipeline.model import StableDiffusion
from gradina.request import Defaults
from gradina.weights.components import Components
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import write_file
from gradina.weights.formats.lora import write_lora

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
    """Random values for all parameters, so that no two are equal."""
    for p in network.parameters():
        p.data = torch.randn(p.shape) * 0.1
    return network.eval()


def _assert_same(one: Components, two: Components) -> None:
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
def assert_same() -> Callable[[Components, Components], None]:
    return _assert_same


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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="session")
def strip_metadata() -> Callable[..., None]:
    """Leaves a file as others publish it: without metadata, and with the tensors that they leave in."""
    return lambda path, **tensors: save_file(load_file(path) | tensors, path)


@pytest.fixture(scope="session")
def edit_json() -> Callable[..., None]:
    """Changes keys of a JSON file; those that become ... are removed."""

    def edit(path: Path, **changes: Any) -> None:
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edit


@pytest.fixture(scope="session")
def refused_by_name() -> Callable[[Path], AbstractContextManager[None]]:
    """What is inside may be refused, in an error that names the file."""

    @contextmanager
    def named(path: Path) -> Iterator[None]:
        try:
            yield
        except WeightsError as error:
            if str(path) not in str(error):
                raise

    return named


@pytest.fixture(scope="session")
def random_layers() -> Callable[..., dict[str, LoRAWeights]]:
    def make(
        network: nn.Module, seed: int, targets: tuple[str, ...] = ATTENTION, alpha: float = 2.0
    ) -> dict[str, LoRAWeights]:
        key = torch.Generator().manual_seed(seed)
        layers = initial_lora(network, 2, key, targets, alpha)
        return {n: LoRAWeights(x.down, torch.randn(x.up.shape, generator=key) / 4, x.alpha) for n, x in layers.items()}

    return make


@pytest.fixture(scope="session")
def random_lora(random_layers: Callable[..., dict[str, LoRAWeights]]) -> Callable[..., LoRA]:
    """A LoRA of all kinds of layers of a model."""
    targets = (r".*attn\.(q|k|v|out)", r".*proj_(in|out)", r".*conv\d?", r".*time")
    return lambda model, alpha=2.0: LoRA(
        unet=random_layers(model.unet, 1, targets, alpha), text=random_layers(model.text, 2, ATTENTION, alpha)
    )


@pytest.fixture(scope="session")
def lora_file(
    tiny_model: Callable[..., StableDiffusion],
    random_layers: Callable[..., dict[str, LoRAWeights]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LoRA, dict[str, Tensor]]:
    """A LoRA of all attentions, and its tensors as they are written."""
    model, path = tiny_model("sd1"), tmp_path_factory.mktemp("lora") / "a.safetensors"
    lora = LoRA(unet=random_layers(model.unet, 1), text=random_layers(model.text, 2))
    write_lora(lora, path, model.unet, model.text)
    return lora, load_file(path)


@pytest.fixture(scope="session")
def assert_same_lora() -> Callable[[LoRA, LoRA], None]:
    """Equal to the bit."""

    def check(one: LoRA, two: LoRA) -> None:
        for left, right in ((one.unet, two.unet), (one.text, two.text)):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[name].product(), right[name].product()) for name in left)

    return check
