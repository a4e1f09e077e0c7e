"""A picture is the same whatever it is drawn together with, and whenever it is drawn."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradina import Request, generate
from gradina.pipeline import plan
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.plan import batches, resolved

Tiny = Callable[..., StableDiffusion]
AsLoaded = Callable[[StableDiffusion], StableDiffusion]
ASKED = Request(prompt="a red boat", negative_prompt="blue", seed=7, steps=4, width=64, height=64)
LONG = "a red boat, oil on canvas " * 20  # over 75 tokens
PROMPTS = ("a red boat", LONG, "seven", "a red lighthouse at night " * 3, "")


def grey(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in grey levels."""
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def apart(model: StableDiffusion, asked: Request) -> int:
    """How far the pictures of a request are from those drawn one by one."""
    pictures = list(generate(model, asked))
    assert [p.request for p in pictures] == [resolved(model, asked).alone(k) for k in range(len(pictures))]
    assert len({p.image.tobytes() for p in pictures}) == len(pictures)
    return max(grey(p.image, next(generate(model, p.request)).image) for p in pictures)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("ddim", "leading"), ("dpmpp_2m", "karras"), ("euler_ancestral", "leading"), ("dpmpp_sde", "karras")],
)
def test_a_picture_of_a_batch_is_the_picture_alone(sampler: Any, schedule: Any, images: int, tiny_model: Tiny) -> None:
    asked = replace(ASKED, sampler=sampler, schedule=schedule, images=images)
    assert apart(tiny_model("sd1"), asked) <= 1


@pytest.mark.parametrize("form", ["sd1", "sd2", "inpainting"])
@pytest.mark.parametrize("sampler", ["unipc", "ddpm"])
def test_prompts_of_different_lengths(sampler: Any, form: str, tiny_model: Tiny) -> None:
    assert apart(tiny_model(form), replace(ASKED, prompt=PROMPTS, sampler=sampler)) <= 1
    assert apart(tiny_model(form), replace(ASKED, prompt=PROMPTS[:3], negative_prompt=LONG, sampler=sampler)) <= 1


@pytest.mark.parametrize("form", ["sd1", "inpainting"])
@pytest.mark.parametrize("masked", [False, True])
def test_pictures_from_one_picture(masked: bool, form: str, tiny_model: Tiny, init: Any, mask: Any) -> None:
    asked = replace(ASKED, init_image=init, mask_image=mask if masked else None, images=3, sampler="euler_ancestral")
    assert apart(tiny_model(form), asked) <= 1


def test_batches_are_cut(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_model(), replace(ASKED, prompt=PROMPTS, images=3, steps=2, sampler="euler_ancestral")
    whole = list(generate(model, asked))
    sizes = [len(part.prompts) for part in batches(model, resolved(model, asked))]
    assert sizes == [3, 3, 9]
    monkeypatch.setattr(plan, "AT_ONCE", 2 * 8 * 8)
    parts = batches(model, resolved(model, asked))
    assert [len(part.prompts) for part in parts] == [2, 1, 2, 1, 2, 2, 2, 2, 1]
    assert [part.seed for part in parts] == [7, 9, 10, 12, 13, 15, 17, 19, 21]
    cut = list(generate(model, asked))
    assert [p.seed for p in cut] == [p.seed for p in whole] == list(range(7, 22))
    assert max(grey(a.image, b.image) for a, b in zip(cut, whole, strict=True)) <= 1
    monkeypatch.setattr(plan, "AT_ONCE", 1)
    assert len(batches(model, resolved(model, asked))) == 15


AGAIN = """
import hashlib, sys, torch, gradina
torch.set_num_threads(1)
model = gradina.load(sys.argv[1], device="cpu")
for sampler in ("dpmpp_2m", "dpmpp_sde"):
    request = gradina.Request(prompt="a red boat", negative_prompt="blue", seed=7, steps=4, width=64, height=64,
                              sampler=sampler, images=2)
    for picture in gradina.generate(model, request):
        print(hashlib.sha256(picture.image.tobytes()).hexdigest())
"""


def test_a_new_process_draws_the_same_bits(tiny_model: Tiny, as_loaded: AsLoaded, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "model")
    command = [sys.executable, "-c", AGAIN, str(tmp_path / "model")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    drawn = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    here = [
        hashlib.sha256(picture.image.tobytes()).hexdigest()
        for sampler in ("dpmpp_2m", "dpmpp_sde")
        for picture in generate(as_loaded(tiny_model()), replace(ASKED, sampler=sampler, images=2))
    ]
    assert drawn.stdout.split() == here
