"""Resolving a request: its size, its noise levels, each file opened and each prompt tokenised once, early errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gradina import GradinaError, Request, generate, steps
from gradina.errors import PictureError, RequestError
from gradina.models.tokenizer import Tokenizer
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.generate import events
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.resolve import resolve

from .conftest import counted, grey

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)
LONG = "a red boat, oil on canvas " * 20  # over 75 tokens
PROMPTS = ("a red boat", LONG, "seven", "a red lighthouse at night " * 3, "")


@pytest.mark.parametrize(
    ("given", "drawn"), [((64, 64), (64, 64)), ((400, 100), (128, 32)), ((90, 160), (48, 88)), ((3000, 2), (2480, 8))]
)
def test_the_size_keeps_the_shape_of_the_init_image(
    given: tuple[int, int], drawn: tuple[int, int], tiny_model: Tiny
) -> None:
    model, picture = tiny_model(), Image.new("RGB", given, "teal")
    request = resolve(model, replace(ASKED, width=None, height=None, init_image=picture)).request
    assert (request.width, request.height) == drawn
    request = resolve(model, replace(ASKED, width=72, height=40, init_image=picture)).request
    assert (request.width, request.height) == (72, 40)


def test_sizes_are_multiples_of_the_factor_of_the_vae(tiny_model: Tiny) -> None:
    model = tiny_model()
    config = replace(model.vae.config, widths=(16,) * 5)  # sixteen times smaller
    coarse = replace(model, vae=AutoencoderKL(config))
    with pytest.raises(RequestError, match="width: got 72, expected a multiple of 16 for this model"):
        generate(coarse, replace(ASKED, width=72))
    request = resolve(coarse, replace(ASKED, width=None, height=None, init_image=Image.new("RGB", (90, 160)))).request
    assert (request.width, request.height) == (48, 80)


def test_more_steps_than_levels_are_refused(tiny_model: Tiny) -> None:
    model = tiny_model()
    short = replace(model, schedule=replace(model.schedule, sigmas=model.schedule.sigmas[::20]))
    with pytest.raises(RequestError, match="steps: got 60, expected 1 to 50"):
        generate(short, replace(ASKED, steps=60))


def test_a_damaged_mask_is_refused(tiny_model: Tiny, init: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\nthe rest is lost")
    with pytest.raises(PictureError, match=r"mask_image: .*mask\.png"):
        generate(tiny_model(), replace(ASKED, init_image=init, mask_image=tmp_path / "mask.png"))


@pytest.mark.parametrize("call", [events, generate, steps])
@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"steps": 1000, "sampler": "dpmpp_2m", "schedule": "leading"},
            "steps: the leading schedule has no 1000",
        ),
        ({"init_image": "nowhere.png"}, "init_image: nowhere.png does not exist"),
        ({"init_image": __file__}, "is not a picture"),
        ({"seed": 2**64 - 1, "images": 2}, "seed: got 18446744073709551616"),
    ],
)
def test_errors_are_raised_before_the_unet_runs(call: Any, fields: dict[str, Any], line: str, tiny_model: Tiny) -> None:
    with counted(tiny_model()) as seen, pytest.raises(GradinaError) as caught:
        call(tiny_model(), replace(ASKED, **fields))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not seen


def test_every_field_with_a_default_is_filled_in(tiny_model: Tiny, init: Image.Image, mask: Image.Image) -> None:
    resolved = resolve(tiny_model(), Request(prompt="a red boat", init_image=init, mask_image=mask, strength=0.5))
    request, settings = resolved.request, resolved.settings
    assert settings == tiny_model().defaults
    assert all(getattr(request, name) == getattr(settings, name) for name in settings.__slots__)
    assert request.seed is not None
    assert resolved.shape == (4, 8, 8)
    assert len(resolved.sigmas) == 1 + 2, "half of five steps, rounded down"
    assert resolved.init is not None
    assert resolved.mask is not None
    assert resolved.mask.getcolors() == [(64 * 64 - 30 * 31, 0), (30 * 31, 255)]
    assert resolve(tiny_model(), replace(request, strength=0.1)).sigmas.tolist() == [0]


def test_batches_hold_prompts_of_as_many_chunks_and_bounded_pixels(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = replace(ASKED, negative_prompt="blue", steps=2, sampler="euler_ancestral")
    model, asked = tiny_model(), replace(guided, prompt=PROMPTS, images=3)
    whole = list(generate(model, asked))
    resolved = resolve(model, asked)
    assert resolved.batches() == [range(3), range(3, 6), range(6, 15)]
    monkeypatch.setattr("gradina.pipeline.resolve.MAX_BATCH_PIXELS", 2 * 8 * 8)
    cuts = [0, 2, 3, 5, 6, 8, 10, 12, 14, 15]
    assert resolved.batches() == [range(a, b) for a, b in pairwise(cuts)]
    cut = list(generate(model, asked))
    assert [p.seed for p in cut] == [p.seed for p in whole] == list(range(7, 22))
    assert max(grey(a.image, b.image) for a, b in zip(cut, whole, strict=True)) <= 1
    monkeypatch.setattr("gradina.pipeline.resolve.MAX_BATCH_PIXELS", 1)
    assert resolved.batches() == [range(i, i + 1) for i in range(15)]


def test_each_file_is_opened_once_for_all_batches(
    tiny_model: Tiny, init: Image.Image, mask: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init.save(tmp_path / "init.png")
    mask.save(tmp_path / "mask.png")
    opened: list[str] = []
    open_file = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: (opened.append(str(file)), open_file(file, *rest))[1])
    monkeypatch.setattr("gradina.pipeline.resolve.MAX_BATCH_PIXELS", 1)
    asked = replace(ASKED, init_image=tmp_path / "init.png", mask_image=tmp_path / "mask.png", images=3, width=None)
    assert len(list(generate(tiny_model(), replace(asked, height=None)))) == 3
    assert opened == [str(tmp_path / "init.png"), str(tmp_path / "mask.png")]


def test_each_text_is_tokenised_once_for_all_batches(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    ids = Tokenizer.ids
    monkeypatch.setattr(Tokenizer, "ids", lambda self, text: (texts.append(text), ids(self, text))[1])
    monkeypatch.setattr("gradina.pipeline.resolve.MAX_BATCH_PIXELS", 1)
    asked = replace(ASKED, prompt=("a red boat", "seven " * 80, "seven"), negative_prompt="blue", images=2, steps=1)
    assert len(list(generate(tiny_model(), asked))) == 6
    assert sorted(texts) == sorted(["a red boat", "seven " * 80, "seven", "blue"])
