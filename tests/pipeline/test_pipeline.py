"""The pipeline: steps and pictures, guidance, masks, sizes, and errors that come before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradina import GradinaError, Request, Step, generate, load, steps
from gradina.errors import PictureError, RequestError
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.generate import develop
from gradina.pipeline.model import StableDiffusion, to_image, to_pixels
from gradina.pipeline.plan import plans, prepare, resolved
from gradina.request import SAMPLER_NAMES, SCHEDULE_NAMES

Tiny = Callable[..., StableDiffusion]
AsLoaded = Callable[[StableDiffusion], StableDiffusion]
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


# Steps


def test_steps_tell_where_the_walk_is(tiny_model: Tiny) -> None:
    walked = list(steps(tiny_model(), replace(ASKED, images=2, sampler="euler")))
    assert [step.i for step in walked] == [0, 1, 2, 3]
    sigmas = [step.sigma for step in walked]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0
    assert all(step.x.shape == step.denoised.shape == (2, 4, 8, 8) for step in walked)
    assert all(isinstance(step, Step) and not step.x.requires_grad for step in walked)
    shown = tiny_model().decode(walked[0].denoised)
    assert [image.size for image in shown] == [(64, 64)] * 2


def test_the_last_step_is_the_picture(tiny_model: Tiny, init: Image.Image, mask: Image.Image) -> None:
    model = tiny_model()
    for asked in (
        replace(ASKED, images=2),
        replace(ASKED, init_image=init),
        replace(ASKED, init_image=init, mask_image=mask),
    ):
        *_, step = steps(model, asked)
        (plan,) = plans(model, asked)
        pictures = list(generate(model, asked))
        assert all(grey(a.image, b.image) == 0 for a, b in zip(develop(model, plan, step), pictures, strict=True))


def test_at_level_zero_what_is_shown_is_the_picture(tiny_model: Tiny) -> None:
    *_, step = steps(tiny_model(), replace(ASKED, sampler="dpmpp_2m", schedule="karras"))
    (picture,) = generate(tiny_model(), replace(ASKED, sampler="dpmpp_2m", schedule="karras"))
    assert grey(tiny_model().decode(step.denoised)[0], picture.image) == 0


def test_a_picture_says_how_to_draw_it_again(tiny_model: Tiny) -> None:
    model = tiny_model()
    for k, picture in enumerate(generate(model, Request(prompt=("a red boat", "seven"), steps=2, images=2))):
        assert picture.request.prompt == ("a red boat", "a red boat", "seven", "seven")[k]
        assert picture.request.images == 1
        assert picture.seed == picture.request.seed
        assert picture.model == model.about == {"name": "tiny", "dtype": "fp32"}
        assert picture.request.resolved(model.defaults) == picture.request
        (again,) = generate(model, picture.request)
        assert grey(again.image, picture.image) <= 1


def test_seeds_follow_each_other_and_are_new_each_time(tiny_model: Tiny) -> None:
    seeds = [
        [p.seed for p in generate(tiny_model(), replace(ASKED, steps=1, images=3, seed=seed))]
        for seed in (0, None, None)
    ]
    assert seeds[0] == [0, 1, 2]
    assert seeds[1] == list(range(seeds[1][0], seeds[1][0] + 3))
    assert seeds[1] != seeds[2]


def test_the_global_generator_is_left_alone(tiny_model: Tiny, init: Image.Image) -> None:
    state = torch.random.get_rng_state()
    list(generate(tiny_model(), replace(ASKED, init_image=init, sampler="euler_ancestral")))
    assert torch.equal(torch.random.get_rng_state(), state)


# Guidance


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_calls_of_the_network(sampler: Any, tiny_model: Tiny) -> None:
    """At scales 1 and 0 nothing is asked without the prompt; each sampler asks as often as its name promises."""
    calls = {"heun": 2 * 4 - 1, "dpmpp_sde": 2 * 4 - 1, "pndm": 4 + 1}.get(sampler, 4)
    for scale, batch in ((1, 2), (5, 4), (0, 2), (0.5, 4)):
        with counted(tiny_model()) as seen:
            list(generate(tiny_model(), replace(ASKED, sampler=sampler, images=2, guidance_scale=scale)))
        assert seen == [batch] * calls


def test_reuse_asks_for_all_of_the_unet_at_every_nth_step_alone(tiny_model: Tiny) -> None:
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


def test_reuse_needs_the_parts_of_the_unet(tiny_model: Tiny) -> None:
    model = replace(tiny_model(), engine="compile")
    with pytest.raises(RequestError, match="reuse: got 2, but compile computes the U-Net as a whole; try engine eager"):
        generate(model, replace(ASKED, reuse=2))


def test_guidance_in_an_interval(tiny_model: Tiny) -> None:
    model, asked = tiny_model(), replace(ASKED, sampler="euler", schedule="karras", guidance_scale=5)
    sigmas = prepare(model, resolved(model, asked)).sigmas[:-1].tolist()
    with counted(model) as seen:
        (within,) = generate(model, replace(asked, guidance_interval=(sigmas[2], sigmas[1])))
    assert seen == [1, 2, 2, 1]
    (always,) = generate(model, asked)
    (everywhere,) = generate(model, replace(asked, guidance_interval=(0, 1000)))
    (nowhere,) = generate(model, replace(asked, guidance_interval=(900, 1000)))
    (plain,) = generate(model, replace(asked, guidance_scale=1))
    assert grey(always.image, everywhere.image) == grey(nowhere.image, plain.image) == 0
    assert grey(within.image, always.image) > 1 < grey(within.image, plain.image)


def test_words_matter(tiny_model: Tiny) -> None:
    def drawn(**fields: Any) -> Image.Image:
        (picture,) = generate(tiny_model(), replace(ASKED, **fields))
        return picture.image

    usual = drawn()
    for fields in ({"prompt": "seven"}, {"negative_prompt": "blue"}, {"guidance_scale": 9}, {"guidance_rescale": 0.7}):
        assert grey(usual, drawn(**fields)) > 1, fields
    assert grey(drawn(guidance_scale=1), drawn(guidance_scale=1, negative_prompt="blue")) == 0


# Sizes and errors


@pytest.mark.parametrize(("width", "height"), [(8, 8), (8, 136), (72, 56)])
def test_sizes_that_do_not_halve(width: int, height: int, tiny_model: Tiny) -> None:
    (picture,) = generate(tiny_model(), replace(ASKED, width=width, height=height, steps=1))
    assert picture.image.size == (width, height)


@pytest.mark.parametrize("call", [generate, steps])
@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"steps": 1000, "sampler": "dpmpp_2m", "schedule": "leading"},
            "steps: the leading schedule has no 1000",
        ),
        ({"init_image": "nowhere.png"}, "init_image: nowhere.png does not exist"),
        ({"init_image": __file__}, "is no picture"),
        ({"seed": 2**64 - 1, "images": 2}, "seed: got 18446744073709551616"),
    ],
)
def test_errors_come_before_drawing(call: Any, fields: dict[str, Any], line: str, tiny_model: Tiny) -> None:
    with counted(tiny_model()) as seen, pytest.raises(GradinaError) as caught:
        call(tiny_model(), replace(ASKED, **fields))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not seen


def test_too_many_steps(tiny_model: Tiny) -> None:
    model = tiny_model()
    short = replace(model, schedule=replace(model.schedule, sigmas=model.schedule.sigmas[::20]))
    with pytest.raises(RequestError, match="steps: got 60, expected 1 to 50"):
        generate(short, replace(ASKED, steps=60))


def test_a_mask_that_cannot_be_read(tiny_model: Tiny, init: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\nthe rest is lost")
    with pytest.raises(PictureError, match=r"mask_image: .*mask\.png"):
        generate(tiny_model(), replace(ASKED, init_image=init, mask_image=tmp_path / "mask.png"))


def test_a_size_that_the_model_cannot_draw(tiny_model: Tiny) -> None:
    model = tiny_model()
    config = replace(model.vae.config, widths=(16,) * 5)  # sixteen times smaller
    coarse = replace(model, vae=AutoencoderKL(config))
    with pytest.raises(RequestError, match="width: got 72, expected a multiple of 16 for this model"):
        generate(coarse, replace(ASKED, width=72))
    request = resolved(coarse, replace(ASKED, width=None, height=None, init_image=Image.new("RGB", (90, 160))))
    assert (request.width, request.height) == (48, 80)


def test_a_word_that_the_text_tower_does_not_know(tiny_model: Tiny) -> None:
    model = tiny_model()
    wordy = replace(model, tokenizer=model.tokenizer.with_placeholder("<dog>"))
    assert torch.equal(wordy.encode_text(["a red boat"]).states, model.encode_text(["a red boat"]).states)
    with pytest.raises(
        RequestError, match="prompt: '<dog>' is a token that the text tower does not know; leave it out"
    ):
        generate(wordy, replace(ASKED, prompt="a <dog>"))


def test_long_and_short_prompts_cannot_be_stepped_together(tiny_model: Tiny) -> None:
    with pytest.raises(RequestError, match="over 75 tokens"):
        steps(tiny_model(), replace(ASKED, prompt=("seven " * 80, "seven")))


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


# The model itself


def test_pixels_and_back(init: Image.Image) -> None:
    pixels = to_pixels(init)
    assert pixels.shape == (3, 64, 64)
    assert (pixels.min() >= -1) & (pixels.max() <= 1)
    assert grey(to_image(pixels), init) == 0
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    assert grey(to_image(to_pixels(every)), every) == 0
    assert levels(to_image(torch.tensor([-9.0, 0, 9])[:, None, None]))[0, 0].tolist() == [0, 128, 255]


def test_encoding_takes_the_mean_or_a_sample(tiny_model: Tiny, init: Image.Image) -> None:
    model, pixels = tiny_model(), to_pixels(init)[None]
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    believed, scale = model.vae.posterior(pixels), model.vae.config.scale
    torch.testing.assert_close(model.encode(pixels), believed.mean * scale)
    torch.testing.assert_close(model.encode(pixels, noise), believed.sample(noise) * scale)


def test_a_saved_model_draws_the_same(tiny_model: Tiny, as_loaded: AsLoaded, tmp_path: Path) -> None:
    for form in ("sd1", "sd2", "inpainting"):
        model = tiny_model(form)
        model.save(tmp_path / form)
        loaded = load(tmp_path / form, device="cpu")
        (one,), (two,) = generate(as_loaded(model), ASKED), generate(loaded, ASKED)
        assert grey(one.image, two.image) == 0
        assert loaded.defaults == model.defaults
        assert loaded.hash
        assert two.model == loaded.about
        assert loaded.about["hash"] == loaded.hash


def test_half_precision_gives_a_close_picture(tiny_model: Tiny, tmp_path: Path, init: Image.Image) -> None:
    tiny_model("sd2").save(tmp_path / "model")
    model = load(tmp_path / "model", device="cpu", dtype="bf16")
    assert model.dtype == torch.bfloat16
    for asked in (ASKED, replace(ASKED, init_image=init)):
        (close,), (exact,) = generate(model, asked), generate(tiny_model("sd2"), asked)
        assert np.abs(levels(close.image) - levels(exact.image)).mean() < 4
    *_, step = steps(model, ASKED)
    assert step.x.dtype == step.denoised.dtype == torch.float32


# Little memory


def test_in_little_memory_pictures_are_the_same(tiny_model: Tiny, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "tiny")
    for dtype in ("fp32", "bf16"):
        whole, lean = (load(tmp_path / "tiny", dtype=dtype, low_memory=low) for low in (False, True))
        assert lean.dtype == whole.dtype
        assert lean.about == whole.about
        init = Image.linear_gradient("L").convert("RGB").resize((64, 64))
        for asked in (ASKED, replace(ASKED, reuse=2, images=2), replace(ASKED, init_image=init)):
            pictures = zip(generate(whole, asked), generate(lean, asked), strict=True)
            assert max(grey(a.image, b.image) for a, b in pictures) <= 1


def test_in_little_memory_one_network_is_awake_at_a_time(tiny_model: Tiny, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "tiny")
    model = load(tmp_path / "tiny", dtype="bf16", low_memory=True)
    for step in steps(model, replace(ASKED, steps=2)):
        assert model.lean is not None
        assert model.lean.offloaded is model.unet
        denoised = step.denoised
    model.decode(denoised)
    assert model.lean is not None
    assert model.lean.offloaded is model.vae
    assert model.unet.conv_in.weight.dtype == torch.float32, "as in the file"
    with pytest.raises(RequestError, match="low_memory: is for the CPU and engine eager, not for cpu and compile"):
        load(tmp_path / "tiny", engine="compile", low_memory=True)
