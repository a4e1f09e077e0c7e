"""Plans: how requests are cut into batches, where runs start, and what masks keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from gradina import Request, generate, steps
from gradina.diffusion.denoiser import noised
from gradina.diffusion.noise import Noise
from gradina.images.tensor import to_pixels
from gradina.pipeline.generate import final_latents, run_sampler
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.plan import (
    inpaint_with_channels,
    plans,
    start_from_image,
    start_from_noise,
    start_under_mask,
)
from gradina.pipeline.resolve import Resolved, latent_mask, resolve
from gradina.request import SAMPLER_NAMES

from .conftest import counted, grey

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)


def test_guidance_interval(tiny_model: Tiny) -> None:
    model, asked = tiny_model(), replace(ASKED, sampler="euler", schedule="karras", guidance_scale=5)
    sigmas = resolve(model, asked).sigmas[:-1].tolist()
    with counted(model) as seen:
        (within,) = generate(model, replace(asked, guidance_interval=(sigmas[2], sigmas[1])))
    assert seen == [1, 2, 2, 1]
    (always,) = generate(model, asked)
    (everywhere,) = generate(model, replace(asked, guidance_interval=(0, 1000)))
    (nowhere,) = generate(model, replace(asked, guidance_interval=(900, 1000)))
    (plain,) = generate(model, replace(asked, guidance_scale=1))
    assert grey(always.image, everywhere.image) == grey(nowhere.image, plain.image) == 0
    assert grey(within.image, always.image) > 1 < grey(within.image, plain.image)


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_strength_cuts_the_steps(strength: float, tiny_model: Tiny, init: Image.Image) -> None:
    asked = replace(ASKED, steps=10, init_image=init, strength=strength)
    assert len(list(steps(tiny_model(), asked))) == int(10 * strength)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_latents_outside_the_mask_are_those_of_the_init_image(
    sampler: Any, tiny_model: Tiny, init: Image.Image, mask: Image.Image
) -> None:
    asked = replace(ASKED, init_image=init, mask_image=mask, strength=0.8, sampler=sampler, schedule="leading")
    (plan,) = plans(tiny_model(), asked)
    *_, step = run_sampler(plan)
    assert plan.kept is not None
    known, inside = plan.kept
    kept = (inside == 0).expand_as(known)
    assert kept.float().mean() == 1 - 16 / 64  # latents' corners 16, 24, 32, 40 down and 24, 32, 40, 48 across
    assert torch.equal(final_latents(plan, step)[kept], known[kept])


def test_a_white_mask_is_no_mask(tiny_model: Tiny, init: Image.Image) -> None:
    """Then nothing is known, and the picture is that of the same walk without a mask."""
    asked = replace(ASKED, init_image=init, strength=0.6)
    (free,) = generate(tiny_model(), asked)
    (drawn,) = generate(tiny_model(), replace(asked, mask_image=Image.new("L", (64, 64), 255)))
    assert ImageChops.difference(free.image, drawn.image).getbbox() is None


def test_an_inpainting_model_also_draws_without_a_mask(tiny_model: Tiny, init: Image.Image) -> None:
    model = tiny_model("inpainting")
    (words,) = generate(model, ASKED)
    (picture,) = generate(model, replace(ASKED, init_image=init, strength=0.5))
    assert grey(words.image, picture.image) > 1


class Drawn:
    """What the next `noise()` of a batch gives, in order: fresh generators of the same seeds."""

    def __init__(self, resolved: Resolved) -> None:
        self.noise = Noise([7], resolved.shape)
        self.tensors = [self.noise() for _ in range(4)]

    def left(self, noise: Noise) -> int:
        """How many of them a noise that was used has not given."""
        following = noise()
        return next(4 - i for i, n in enumerate(self.tensors) if torch.equal(n, following))


def test_a_start_from_noise_draws_it_alone(tiny_model: Tiny) -> None:
    resolved = resolve(tiny_model(), replace(ASKED, sampler="euler", schedule="karras"))
    drawn, noise = Drawn(resolved), Noise([7], resolved.shape)
    torch.testing.assert_close(start_from_noise(resolved, noise), drawn.tensors[0] * float(resolved.sigmas[0]))
    assert drawn.left(noise) == 3


def test_a_start_from_an_image_draws_the_sample_then_the_noise(tiny_model: Tiny, init: Image.Image) -> None:
    resolved = resolve(tiny_model(), replace(ASKED, init_image=init))
    drawn, noise = Drawn(resolved), Noise([7], resolved.shape)
    z = resolved.model.encode(to_pixels(init)[None], drawn.tensors[0])
    assert torch.equal(start_from_image(resolved, init, noise), noised(z, drawn.tensors[1], resolved.sigmas[0]))
    assert drawn.left(noise) == 2


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_start_under_a_mask_draws_one_tensor_more(
    strength: float, tiny_model: Tiny, init: Image.Image, mask: Image.Image
) -> None:
    resolved = resolve(tiny_model(), replace(ASKED, init_image=init, mask_image=mask, strength=strength))
    drawn, noise = Drawn(resolved), Noise([7], resolved.shape)
    x, known, n = start_under_mask(resolved, init, noise)
    assert torch.equal(n, drawn.tensors[1])
    assert torch.equal(known, resolved.model.encode(to_pixels(init)[None], drawn.tensors[0]))
    assert torch.equal(x, n * resolved.init_noise_sigma if strength == 1 else noised(known, n, resolved.sigmas[0]))
    assert drawn.left(noise) == 1


@pytest.mark.parametrize(("strength", "before"), [(0.6, 2), (1.0, 1)])
def test_channels_of_an_inpainting_model_are_drawn_after_the_start(
    strength: float, before: int, tiny_model: Tiny, init: Image.Image, mask: Image.Image
) -> None:
    asked = replace(ASKED, init_image=init, mask_image=mask, strength=strength)
    resolved = resolve(tiny_model("inpainting"), asked)
    drawn, noise = Drawn(resolved), Noise([7], resolved.shape)
    x, channels = inpaint_with_channels(resolved, noise)
    inside = latent_mask(mask, 8)
    assert inside.sum() == 16
    assert torch.equal(channels[:, :1], inside)
    kept = to_pixels(init) * (torch.from_numpy(np.array(mask)) < 128)
    assert torch.equal(channels[:, 1:], resolved.model.encode(kept[None], drawn.tensors[before]))
    assert drawn.left(noise) == 3 - before
    started = start_from_noise if strength == 1 else partial(start_from_image, init=init)
    assert torch.equal(x, started(resolved, noise=Noise([7], resolved.shape)))
