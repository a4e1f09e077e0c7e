"""Pictures from pictures: how far they are changed, what a mask keeps, and the size at which they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from gradina import Request, generate, steps
from gradina.images.open import overlay
from gradina.pipeline.generate import finished, walk
from gradina.pipeline.model import StableDiffusion, to_pixels
from gradina.pipeline.plan import plans, resolved
from gradina.request import SAMPLER_NAMES

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def grey(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in grey levels."""
    return int(np.abs(levels(one) - levels(other)).max())


@contextmanager
def counted(model: StableDiffusion) -> Iterator[list[int]]:
    """How many pictures the U-Net was asked about, call by call."""
    calls: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    yield calls
    hook.remove()


def test_strength_nought_is_the_way_through_the_autoencoder(
    tiny_model: Tiny, init: Image.Image, mask: Image.Image
) -> None:
    model = tiny_model()
    (back,) = model.decode(model.encode(to_pixels(init)[None]))
    for sampler in ("ddim", "euler"):
        with counted(model) as seen:
            pictures = list(generate(model, replace(ASKED, sampler=sampler, init_image=init, strength=0, images=2)))
        assert not seen
        assert [grey(picture.image, back) for picture in pictures] == [0, 0]
        assert list(steps(model, replace(ASKED, sampler=sampler, init_image=init, strength=0))) == []
    (kept,) = generate(model, replace(ASKED, init_image=init, mask_image=mask, strength=0))
    assert grey(kept.image, overlay(init, back, mask.point(lambda value: 255 * (value >= 128)))) == 0


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_strength_cuts_the_walk(strength: float, tiny_model: Tiny, init: Image.Image) -> None:
    asked = replace(ASKED, steps=10, init_image=init, strength=strength)
    assert len(list(steps(tiny_model(), asked))) == int(10 * strength)


def test_any_result_can_be_the_next_start(tiny_model: Tiny, tmp_path: Path) -> None:
    (first,) = generate(tiny_model(), ASKED)
    first.save(tmp_path / "first.png")
    (second,) = generate(tiny_model(), replace(ASKED, init_image=first.image, strength=0.6))
    (from_file,) = generate(tiny_model(), replace(ASKED, init_image=tmp_path / "first.png", strength=0.6))
    assert grey(second.image, from_file.image) == 0
    assert grey(first.image, second.image) > 1


@pytest.mark.parametrize(
    ("given", "drawn"), [((64, 64), (64, 64)), ((400, 100), (128, 32)), ((90, 160), (48, 88)), ((3000, 2), (2480, 8))]
)
def test_a_picture_keeps_its_shape(given: tuple[int, int], drawn: tuple[int, int], tiny_model: Tiny) -> None:
    model, picture = tiny_model(), Image.new("RGB", given, "teal")
    request = resolved(model, replace(ASKED, width=None, height=None, init_image=picture))
    assert (request.width, request.height) == drawn
    request = resolved(model, replace(ASKED, width=72, height=40, init_image=picture))
    assert (request.width, request.height) == (72, 40)


@pytest.mark.parametrize("form", ["sd1", "inpainting"])
def test_what_the_mask_keeps_is_kept_exactly(form: str, tiny_model: Tiny, init: Image.Image, mask: Image.Image) -> None:
    asked = replace(ASKED, init_image=init, mask_image=mask, strength=1, images=2, sampler="lms")
    for picture in generate(tiny_model(form), asked):
        changed = np.abs(levels(picture.image) - levels(init)).max(2)
        inside = levels(mask) >= 128
        assert changed[~inside].max() == 0
        assert changed[inside].max() > 20


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_latents_outside_the_mask_are_those_of_the_picture(
    sampler: Any, tiny_model: Tiny, init: Image.Image, mask: Image.Image
) -> None:
    asked = replace(ASKED, init_image=init, mask_image=mask, strength=0.8, sampler=sampler, schedule="leading")
    (plan,) = plans(tiny_model(), asked)
    *_, step = walk(tiny_model(), plan)
    assert plan.known is not None
    assert plan.inside is not None
    kept = (plan.inside == 0).expand_as(plan.known)
    assert kept.float().mean() == 1 - 16 / 64  # latents' corners 16, 24, 32, 40 down and 24, 32, 40, 48 across
    assert torch.equal(finished(plan, step)[kept], plan.known[kept])


def test_overlay_blends_within_the_border() -> None:
    black, white, mask = (Image.new("L", (64, 64), value) for value in (0, 255, 0))
    mask.paste(255, (20, 13, 51, 43))
    blended = levels(overlay(black, white, mask, blur=3))
    assert blended[levels(mask) == 0].max() == 0
    row = blended[28, 20:36]
    assert (np.diff(row) >= 0).all()
    assert row[0] < 60
    assert row[-1] == 255
    assert grey(overlay(black, white, white), white) == 0
    assert grey(overlay(black, white, black), black) == 0


def test_overlay_draws_a_stroke_as_thin_as_a_place_of_the_latents() -> None:
    black, white, mask = (Image.new("L", (512, 512), value) for value in (0, 255, 0))
    mask.paste(255, (200, 0, 208, 512))
    assert levels(overlay(black, white, mask))[256, 203] > 0.85 * 255


def test_a_mask_of_white_draws_everything(tiny_model: Tiny, init: Image.Image) -> None:
    """Then nothing is known, and the picture is that of the same walk without a mask."""
    asked = replace(ASKED, init_image=init, strength=0.6)
    (free,) = generate(tiny_model(), asked)
    (drawn,) = generate(tiny_model(), replace(asked, mask_image=Image.new("L", (64, 64), 255)))
    assert ImageChops.difference(free.image, drawn.image).getbbox() is None


def test_a_nine_channel_model_draws_from_words_and_from_a_picture_too(tiny_model: Tiny, init: Image.Image) -> None:
    model = tiny_model("inpainting")
    (words,) = generate(model, ASKED)
    (picture,) = generate(model, replace(ASKED, init_image=init, strength=0.5))
    assert grey(words.image, picture.image) > 1
