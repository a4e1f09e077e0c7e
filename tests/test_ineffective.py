"""Fields of a request without effect: one note for each, and none for the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradina import Request, generate, steps
from gradina.ineffective import prompt_notes
from gradina.pipeline.model import StableDiffusion

Tiny = Callable[..., StableDiffusion]
Log = pytest.LogCaptureFixture
REQUEST = Request(prompt="a red boat", seed=7, steps=3, sampler="euler", schedule="linspace")


def notes(model: StableDiffusion, caplog: Log, **changes: Any) -> list[str]:
    caplog.clear()
    list(generate(model, replace(REQUEST, **changes)))
    return [record.getMessage() for record in caplog.records]


def pixels(model: StableDiffusion, **changes: Any) -> np.ndarray[Any, Any]:
    (picture,) = generate(model, replace(REQUEST, **changes))
    return np.asarray(picture.image)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance_scale": 0}, ["guidance_scale: 0 draws the prompt alone, without guidance, as 1 does"]),
        ({"guidance_scale": 1, "negative_prompt": "x"}, ["negative_prompt: has no effect at guidance_scale 1;"]),
        ({"guidance_scale": 0, "negative_prompt": "x"}, ["guidance_scale: 0", "negative_prompt: has no effect at"]),
        ({"guidance_scale": 1, "guidance_rescale": 0.5}, ["guidance_rescale: has no effect"]),
        ({"guidance_scale": 1, "guidance_interval": (0, 9)}, ["guidance_interval: has no effect"]),
        ({"guidance_interval": (200, 300)}, ["guidance_interval: none of this run's noise levels"]),
        (
            {"guidance_interval": (200, 300), "negative_prompt": "x"},
            ["guidance_interval: none of", "negative_prompt: has no effect as nothing is guided"],
        ),
        ({"eta": 0.5}, ["eta: has no effect, as the sampler euler takes none"]),
        ({"rates": "constant"}, ["rates: has no effect, as the sampler euler takes none"]),
        ({"strength": 0.3}, ["strength: 0.3 has no effect without an init_image"]),
        (
            {"prompt": "a <lora:x:0.8> boat", "negative_prompt": "<lyco:y:1>"},
            ["prompt: <lora:x:0.8>, <lyco:y:1> is read as plain words; give a LoRA's file by --lora"],
        ),
        ({"prompt": "a (red:1.3) boat"}, ["prompt: weights such as (word:1.2), ((word)) or [word] are read as plain"]),
        ({"prompt": "a ((red)) boat"}, ["prompt: weights"]),
        (
            {"prompt": "a embedding:teddy, boat"},
            ["prompt: embedding:teddy is read as plain words; give the embedding's"],
        ),
        ({"prompt": "a [red:blue:0.5] boat"}, ["prompt: weights"]),
        ({"prompt": "a boat (red), at 3:30 (noon), (16:9)"}, []),
        ({}, []),
        ({"negative_prompt": "x", "guidance_rescale": 0.5, "guidance_interval": (0, 5)}, []),
        ({"guidance_scale": 0.5, "negative_prompt": "x"}, []),
        ({"sampler": "ddim", "eta": 0.5}, []),
        ({"sampler": "adam", "rates": "constant", "eta": 0.1}, []),
    ],
)
def test_fields_without_effect_are_noted(tiny_model: Tiny, caplog: Log, changes: Any, words: list[str]) -> None:
    got = notes(tiny_model(), caplog, **changes)
    assert len(got) == len(words)
    assert all(note.startswith(begin) for note, begin in zip(got, words, strict=True)), got


def test_strength_of_less_than_a_step_is_noted(tiny_model: Tiny, caplog: Log, init: Image.Image) -> None:
    for strength, count in ((0.0, 1), (0.3, 1), (0.34, 0), (1.0, 0)):
        got = notes(tiny_model(), caplog, init_image=init, strength=strength)
        assert len(got) == count, got
        assert all(note.startswith(f"strength: {strength:g} of 3 steps is less than one") for note in got)


def masks() -> dict[str, tuple[Image.Image, str]]:
    grey, thin, clear = Image.new("L", (64, 64)), Image.new("L", (64, 64)), Image.new("RGBA", (64, 64), (255,) * 4)
    grey.paste(1, (8, 8, 40, 40))
    thin.paste(255, (9, 9, 15, 15))
    clear.putalpha(0)
    return {
        "of 0 and 1": (grey, "it has no white (brightest: 1 of 255, and white begins at 128)"),
        "between latents": (thin, "its white is narrower than the 8 x 8 pixels of a latent"),
        "transparent": (clear, "it is black or transparent all over"),
        "black": (Image.new("L", (64, 64)), "it is black or transparent all over"),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("strength", [0.8, 1.0])
@pytest.mark.parametrize("form", ["sd1", "inpainting"])
def test_mask_without_effect_is_noted(
    tiny_model: Tiny, caplog: Log, init: Image.Image, name: str, strength: float, form: str
) -> None:
    mask, words = masks()[name]
    got = notes(tiny_model(form), caplog, init_image=init, mask_image=mask, strength=strength)
    assert len(got) == 1
    assert got[0].startswith("mask_image: nothing is drawn anew, and the picture comes back as it was: ")
    assert words in got[0]


def test_white_mask_is_noted_at_strength_1(tiny_model: Tiny, caplog: Log, init: Image.Image, mask: Image.Image) -> None:
    white = Image.new("L", (64, 64), 255)
    assert notes(tiny_model(), caplog, init_image=init, mask_image=white, strength=1.0)[0].startswith("init_image: has")
    assert notes(tiny_model(), caplog, init_image=init, mask_image=white) == []
    assert notes(tiny_model(), caplog, init_image=init, mask_image=mask, strength=1.0) == []


def test_picture_with_holes_as_mask_is_noted(tiny_model: Tiny, caplog: Log, init: Image.Image) -> None:
    """A transparent layer with strokes is a mask, also with soft edges."""
    picture, strokes = Image.linear_gradient("L").resize((64, 64)).convert("RGBA"), Image.new("RGBA", (64, 64))
    hole = Image.new("L", (64, 64), 255)
    hole.paste(0, (8, 8, 40, 40))
    picture.putalpha(hole)
    strokes.paste((255, 255, 255, 255), (8, 8, 40, 40))
    (note,) = notes(tiny_model(), caplog, init_image=init, mask_image=picture)
    assert note.startswith("mask_image: is a picture with transparent areas, which are kept")
    assert notes(tiny_model(), caplog, init_image=init, mask_image=strokes) == []


def test_steps_notes_the_same(tiny_model: Tiny, caplog: Log) -> None:
    list(steps(tiny_model(), replace(REQUEST, eta=0.5)))
    assert [record.getMessage()[:4] for record in caplog.records] == ["eta:"]


def test_guidance_scale_0_equals_1_and_interpolates_between(tiny_model: Tiny) -> None:
    model = tiny_model()
    none, half, one = (pixels(model, guidance_scale=scale) for scale in (0, 0.5, 1))
    assert (none == one).all()
    assert (half != one).any()
    without = pixels(model, guidance_scale=1, prompt="")
    nearly = pixels(model, guidance_scale=1e-6)
    assert np.abs(nearly.astype(int) - without).max() <= 1, "a little above 0 it is the picture without the prompt"


@pytest.mark.parametrize("evil", ["(a:", "(a:" + "1" * 20000, "(a:1." + "1" * 20000, "(" + "a:" * 20000, "<lora:", "["])
def test_time_is_linear_in_the_prompt(evil: str) -> None:
    start = time.perf_counter()
    list(prompt_notes(Request(prompt=evil * (20000 // len(evil) + 1))))
    assert time.perf_counter() - start < 1
