"""Drawing: events, steps and pictures; each picture is the same whatever it is drawn with, and whenever."""

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
import torch
from PIL import Image

from gradina import Picture, Request, Step, generate, steps
from gradina.images.open import overlay
from gradina.images.tensor import to_pixels
from gradina.pipeline.generate import decode_pictures, events
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.plan import Plan, plans
from gradina.pipeline.resolve import resolve
from gradina.request import SAMPLER_NAMES, SCHEDULE_NAMES

from .conftest import counted, grey

Tiny = Callable[..., StableDiffusion]
AsLoaded = Callable[[StableDiffusion], StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)
GUIDED = replace(ASKED, negative_prompt="blue")
LONG = "a red boat, oil on canvas " * 20  # over 75 tokens
PROMPTS = ("a red boat", LONG, "seven", "a red lighthouse at night " * 3, "")


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def apart(model: StableDiffusion, asked: Request) -> int:
    """How far the pictures of a request are from those drawn one by one."""
    pictures = list(generate(model, asked))
    assert [p.request for p in pictures] == [resolve(model, asked).request.alone(k) for k in range(len(pictures))]
    assert len({p.image.tobytes() for p in pictures}) == len(pictures)
    return max(grey(p.image, next(generate(model, p.request)).image) for p in pictures)


def test_events_are_a_plan_its_steps_and_its_pictures_for_each_batch(tiny_model: Tiny) -> None:
    model, asked = tiny_model(), replace(ASKED, prompt=("a red boat", LONG, "seven"), images=2, steps=2)
    seen = list(events(model, asked))
    assert [type(event) for event in seen] == 3 * [Plan, Step, Step, Picture, Picture]
    drawn_together = [event.pictures for event in seen if not isinstance(event, Picture)]
    assert drawn_together == [pictures for i in (0, 2, 4) for pictures in 3 * [range(i, i + 2)]]
    pictures = [event for event in seen if isinstance(event, Picture)]
    assert [picture.seed for picture in pictures] == [7, 8, 9, 10, 11, 12]
    for picture, same in zip(pictures, generate(model, asked), strict=True):
        assert grey(picture.image, same.image) == 0
        assert picture.request == same.request


def test_steps_are_those_of_events_and_decode_nothing(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_model(), replace(ASKED, images=2, sampler="euler_ancestral")
    plan, *others = [event for event in events(model, asked) if not isinstance(event, Picture)]
    monkeypatch.setattr(type(model), "decode", None)
    stepped = list(steps(model, asked))
    assert len(stepped) == len(others) == 4
    for ours, theirs in zip(stepped, others, strict=True):
        assert isinstance(theirs, Step)
        assert (ours.i, ours.sigma, ours.pictures) == (theirs.i, theirs.sigma, range(2))
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.denoised, theirs.denoised)
    assert isinstance(plan, Plan)
    assert plan.latents.std() == pytest.approx(1, abs=0.1), "variance-preserving"
    assert torch.equal(stepped[-1].latents, stepped[-1].x), "at sigma 0"


def test_steps_count_up_and_their_sigmas_fall(tiny_model: Tiny) -> None:
    walked = list(steps(tiny_model(), replace(ASKED, images=2, sampler="euler")))
    assert [step.i for step in walked] == [0, 1, 2, 3]
    sigmas = [step.sigma for step in walked]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0
    assert all(step.x.shape == step.denoised.shape == (2, 4, 8, 8) for step in walked)
    assert all(isinstance(step, Step) and not step.x.requires_grad for step in walked)
    shown = tiny_model().decode(walked[0].denoised)
    assert [image.size for image in shown] == [(64, 64)] * 2


def test_the_last_step_decodes_to_the_picture(tiny_model: Tiny, init: Image.Image, mask: Image.Image) -> None:
    model = tiny_model()
    for asked in (
        replace(ASKED, images=2),
        replace(ASKED, init_image=init),
        replace(ASKED, init_image=init, mask_image=mask),
    ):
        *_, step = steps(model, asked)
        (plan,) = plans(model, asked)
        pictures = list(generate(model, asked))
        assert all(
            grey(a.image, b.image) == 0 for a, b in zip(decode_pictures(model, plan, step), pictures, strict=True)
        )


def test_the_last_denoised_is_the_picture_of_a_run_that_ends_at_0(tiny_model: Tiny) -> None:
    *_, step = steps(tiny_model(), replace(ASKED, sampler="dpmpp_2m", schedule="karras"))
    (picture,) = generate(tiny_model(), replace(ASKED, sampler="dpmpp_2m", schedule="karras"))
    assert grey(tiny_model().decode(step.denoised)[0], picture.image) == 0


def test_the_request_of_a_picture_draws_it_again(tiny_model: Tiny) -> None:
    model = tiny_model()
    for k, picture in enumerate(generate(model, Request(prompt=("a red boat", "seven"), steps=2, images=2))):
        assert picture.request.prompt == ("a red boat", "a red boat", "seven", "seven")[k]
        assert picture.request.images == 1
        assert picture.seed == picture.request.seed
        assert picture.model == model.about == {"name": "tiny", "dtype": "fp32"}
        assert picture.request.resolved(model.defaults) == picture.request
        (again,) = generate(model, picture.request)
        assert grey(again.image, picture.image) <= 1


def test_seeds_count_up_and_are_new_each_time(tiny_model: Tiny) -> None:
    seeds = [
        [p.seed for p in generate(tiny_model(), replace(ASKED, steps=1, images=3, seed=seed))]
        for seed in (0, None, None)
    ]
    assert seeds[0] == [0, 1, 2]
    assert seeds[1] == list(range(seeds[1][0], seeds[1][0] + 3))
    assert seeds[1] != seeds[2]


def test_the_global_generator_is_not_touched(tiny_model: Tiny, init: Image.Image) -> None:
    state = torch.random.get_rng_state()
    list(generate(tiny_model(), replace(ASKED, init_image=init, sampler="euler_ancestral")))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_calls_of_the_network(sampler: Any, tiny_model: Tiny) -> None:
    """At scales 1 and 0 nothing is asked without the prompt; each sampler asks as often as its name promises."""
    calls = {"heun": 2 * 4 - 1, "dpmpp_sde": 2 * 4 - 1, "pndm": 4 + 1}.get(sampler, 4)
    for scale, batch in ((1, 2), (5, 4), (0, 2), (0.5, 4)):
        with counted(tiny_model()) as seen:
            list(generate(tiny_model(), replace(ASKED, sampler=sampler, images=2, guidance_scale=scale)))
        assert seen == [batch] * calls


def test_reuse_computes_the_inner_unet_at_every_nth_step(tiny_model: Tiny) -> None:
    """Each batch begins anew, so a picture is the same whatever it is drawn together with; 1 is exact."""
    model, asked = tiny_model(), replace(ASKED, sampler="euler", steps=5, images=2)
    seen: list[int] = []
    hook = model.unet.mid.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with_it = list(generate(model, replace(asked, reuse=2)))
    assert seen == [4, 4, 4]
    hook.remove()
    alone = [picture for i in range(2) for picture in generate(model, with_it[i].request)]
    assert max(grey(a.image, b.image) for a, b in zip(alone, with_it, strict=True)) <= 1  # rounding
    exact = list(generate(model, asked))
    assert 0 < grey(exact[0].image, with_it[0].image) < 128


def test_prompts_and_guidance_change_the_picture(tiny_model: Tiny) -> None:
    def drawn(**fields: Any) -> Image.Image:
        (picture,) = generate(tiny_model(), replace(ASKED, **fields))
        return picture.image

    usual = drawn()
    for fields in ({"prompt": "seven"}, {"negative_prompt": "blue"}, {"guidance_scale": 9}, {"guidance_rescale": 0.7}):
        assert grey(usual, drawn(**fields)) > 1, fields
    assert grey(drawn(guidance_scale=1), drawn(guidance_scale=1, negative_prompt="blue")) == 0


@pytest.mark.parametrize(("width", "height"), [(8, 8), (8, 136), (72, 56)])
def test_sizes_that_do_not_halve(width: int, height: int, tiny_model: Tiny) -> None:
    (picture,) = generate(tiny_model(), replace(ASKED, width=width, height=height, steps=1))
    assert picture.image.size == (width, height)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler_with_every_schedule(sampler: Any, schedule: Any, count: int, tiny_model: Tiny) -> None:
    model = tiny_model("sd2" if count == 5 else "sd1")
    asked = replace(ASKED, steps=count, sampler=sampler, schedule=schedule, width=16, height=16, guidance_scale=2)
    *_, step = steps(model, asked)
    assert step.i == count - 1
    assert torch.isfinite(step.x).all()
    assert torch.isfinite(step.denoised).all()
    if sampler not in ("ddim", "pndm"):
        assert step.sigma == 0


def test_strength_0_encodes_and_decodes(tiny_model: Tiny, init: Image.Image, mask: Image.Image) -> None:
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


def test_a_picture_can_be_the_next_init_image(tiny_model: Tiny, tmp_path: Path) -> None:
    (first,) = generate(tiny_model(), ASKED)
    first.save(tmp_path / "first.png")
    (second,) = generate(tiny_model(), replace(ASKED, init_image=first.image, strength=0.6))
    (from_file,) = generate(tiny_model(), replace(ASKED, init_image=tmp_path / "first.png", strength=0.6))
    assert grey(second.image, from_file.image) == 0
    assert grey(first.image, second.image) > 1


@pytest.mark.parametrize("form", ["sd1", "inpainting"])
def test_pixels_outside_the_mask_do_not_change(
    form: str, tiny_model: Tiny, init: Image.Image, mask: Image.Image
) -> None:
    asked = replace(ASKED, init_image=init, mask_image=mask, strength=1, images=2, sampler="lms")
    for picture in generate(tiny_model(form), asked):
        changed = np.abs(levels(picture.image) - levels(init)).max(2)
        inside = levels(mask) >= 128
        assert changed[~inside].max() == 0
        assert changed[inside].max() > 20


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("ddim", "leading"), ("dpmpp_2m", "karras"), ("euler_ancestral", "leading"), ("dpmpp_sde", "karras")],
)
def test_a_picture_of_a_batch_is_the_picture_alone(sampler: Any, schedule: Any, images: int, tiny_model: Tiny) -> None:
    asked = replace(GUIDED, sampler=sampler, schedule=schedule, images=images)
    assert apart(tiny_model("sd1"), asked) <= 1


@pytest.mark.parametrize("form", ["sd1", "sd2", "inpainting"])
@pytest.mark.parametrize("sampler", ["unipc", "ddpm"])
def test_prompts_of_different_lengths(sampler: Any, form: str, tiny_model: Tiny) -> None:
    assert apart(tiny_model(form), replace(GUIDED, prompt=PROMPTS, sampler=sampler)) <= 1
    assert apart(tiny_model(form), replace(GUIDED, prompt=PROMPTS[:3], negative_prompt=LONG, sampler=sampler)) <= 1


@pytest.mark.parametrize("form", ["sd1", "inpainting"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_from_one_init_image(masked: bool, form: str, tiny_model: Tiny, init: Any, mask: Any) -> None:
    asked = replace(GUIDED, init_image=init, mask_image=mask if masked else None, images=3, sampler="euler_ancestral")
    assert apart(tiny_model(form), asked) <= 1


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
        for picture in generate(as_loaded(tiny_model()), replace(GUIDED, sampler=sampler, images=2))
    ]
    assert drawn.stdout.split() == here
