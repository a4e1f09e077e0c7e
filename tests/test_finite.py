"""NaN and infinite values never become a picture: the network that gave them is named, and no file is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gradina import Request, generate, steps
from gradina.apps.cli.main import main
from gradina.diffusion.samplers import SAMPLERS
from gradina.errors import NumericalError
from gradina.finite import finite, finite_step
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.retrieval import search
from gradina.weights.formats.clip import ContrastivePair

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=3)

BROKEN = {  # parameter that is spoilt -> who is named
    "text.blocks.1.proj_in.weight": "text tower: gave NaN",
    "unet.mid.res1.conv1.weight": "U-Net: gave NaN",
    "vae.decoder.conv_in.weight": r"autoencoder \(its decoder\): gave NaN",
}


def spoilt(model: StableDiffusion, name: str, value: float = float("nan")) -> StableDiffusion:
    """A copy of the model in which one value of a parameter is NaN or infinite."""
    part, _, parameter = name.partition(".")
    network = copy.deepcopy(getattr(model, part))
    with torch.no_grad():
        weight = network.get_parameter(parameter)
        weight[(0,) * weight.ndim] = value  # whatever its memory format
    changed: dict[str, Any] = {part: network}
    return replace(model, **changed)


@pytest.mark.parametrize("name", BROKEN)
def test_the_network_and_its_parameter_are_named(tiny_model: Tiny, name: str) -> None:
    parameter = name.partition(".")[2]
    with pytest.raises(NumericalError, match=rf"^{BROKEN[name]}.*its parameter {parameter} holds such values"):
        list(generate(spoilt(tiny_model(), name), ASKED))


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_values_are_named_too(tiny_model: Tiny, value: float) -> None:
    with pytest.raises(NumericalError, match=r"U-Net: gave .*conv_out.bias holds such values"):
        list(generate(spoilt(tiny_model(), "unet.conv_out.bias", value), ASKED))


def test_the_encoder_is_named(tiny_model: Tiny, init: Image.Image) -> None:
    model = spoilt(tiny_model(), "vae.encoder.conv_in.weight")
    with pytest.raises(NumericalError, match=r"autoencoder \(its encoder\): gave NaN"):
        generate(model, replace(ASKED, init_image=init))
    assert len(list(generate(model, ASKED))) == 1, "what is not used does no harm"


def test_a_run_ends_at_the_first_step_that_is_not_finite(tiny_model: Tiny) -> None:
    with pytest.raises(NumericalError):
        next(steps(spoilt(tiny_model(), "unet.mid.res1.conv1.weight"), ASKED))


def test_prepacked_networks_are_searched_too(tiny_model: Tiny, as_loaded: Callable[..., StableDiffusion]) -> None:
    model = as_loaded(spoilt(tiny_model(), "unet.mid.res1.conv1.weight"))
    with pytest.raises(NumericalError, match=r"mid.res1.conv1.weight holds such values"):
        list(generate(model, ASKED))


def test_overflow_in_half_precision_advises_fp32() -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(NumericalError, match=r"gave infinite values.*overflows in float16; try dtype fp32"):
        finite(torch.tensor([1.0, float("inf")]), "U-Net", layer, torch.float16)
    with pytest.raises(NumericalError, match=r"gave NaN.*try a lower guidance_scale"):
        finite(torch.tensor([float("nan"), float("inf")]), "U-Net", layer, torch.float32)
    x = torch.tensor([1.0, -3e38])
    assert finite(x, "U-Net", layer, torch.float32) is x


def test_a_sampler_that_diverges_is_named(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SAMPLERS["euler"]
    monkeypatch.setitem(SAMPLERS, "euler", replace(row, run=lambda denoise, x, *rest: row.run(denoise, x / 0, *rest)))
    with pytest.raises(NumericalError, match=r"^(sampler: euler|U-Net: gave)"):
        list(generate(tiny_model(), replace(ASKED, sampler="euler")))
    with pytest.raises(NumericalError, match=r"sampler: adam diverged \(infinite values\)"):
        finite_step(torch.tensor(float("inf")), "adam")


@pytest.mark.parametrize("part", ["text", "vision"])
def test_no_picture_is_found_by_nan(pair: ContrastivePair, squares: dict[str, Image.Image], part: str) -> None:
    clip = copy.deepcopy(pair.clip)
    with torch.no_grad():
        clip.get_parameter(f"{part}.projection.weight").fill_(float("nan"))
    name = {"text": "text tower", "vision": "image tower"}[part]
    with pytest.raises(NumericalError, match=f"^{name}: gave NaN.*projection.weight holds such values"):
        search(replace(pair, clip=clip), list(squares.values()), "a red square")


def test_no_file_is_written(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spoilt(tiny_model(), "vae.decoder.conv_in.weight").save("model")
    drawn = ["a boat", "-m", "model", "-o", "a.png", "--film", "a.gif"]
    for arguments in (drawn, ["a boat", "-m", "model", "--grid", "steps=1,2"]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert "autoencoder (its decoder): gave NaN" in err
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
