"""A request checks every field, and an error says what was got and what was expected."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradina.errors import GradinaError, RequestError
from gradina.request import SAMPLER_NAMES, SCHEDULE_NAMES, Defaults, Request
from gradina.request_checks import MAX_SEED, check_choice

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, "prompt: got 5, expected a text or a list of at least one text"),
    ({"prompt": ()}, "prompt: got (), expected a text"),
    ({"prompt": ["a", None]}, "prompt: got ('a', None), expected a text"),
    ({"negative_prompt": None}, "negative_prompt: got None, expected a text"),
    ({"steps": 0}, "steps: got 0, expected a whole number from 1 to 1000"),
    ({"steps": 1001}, "steps: got 1001"),
    ({"steps": 20.0}, "steps: got 20.0, expected a whole number"),
    ({"rates": "cosinus"}, "rates: there is no 'cosinus'; did you mean 'cosine'? (choices: levels, constant"),
    ({"steps": True}, "steps: got True, expected a whole number"),
    ({"steps": "20"}, "steps: got '20', expected a whole number"),
    ({"guidance_scale": -1}, "guidance_scale: got -1, expected a number from 0 to 1000"),
    ({"guidance_scale": float("nan")}, "guidance_scale: got nan"),
    ({"guidance_scale": float("inf")}, "guidance_scale: got inf"),
    ({"guidance_scale": 10**400}, "guidance_scale: got 1000"),
    ({"guidance_rescale": 1.5}, "guidance_rescale: got 1.5, expected a number from 0 to 1"),
    ({"guidance_interval": (5.0, 1.0)}, "guidance_interval: got (5.0, 1.0), expected two noise levels (sigma)"),
    ({"guidance_interval": (-1.0, 1.0)}, "guidance_interval: got (-1.0, 1.0)"),
    ({"guidance_interval": (1.0,)}, "guidance_interval: got (1.0,)"),
    ({"guidance_interval": ("a", "b")}, "guidance_interval: got ('a', 'b')"),
    ({"guidance_interval": 3.0}, "guidance_interval: got 3.0"),
    ({"sampler": "dpmpp2m"}, "sampler: there is no 'dpmpp2m'; did you mean 'dpmpp_2m'? (choices: ddpm, ddim, pndm"),
    ({"sampler": "zzz"}, "sampler: there is no 'zzz' (choices: ddpm"),
    ({"schedule": "karas"}, "schedule: there is no 'karas'; did you mean 'karras'? (choices: leading"),
    ({"eta": 2}, "eta: got 2, expected a number from 0 to 1"),
    ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
    ({"seed": MAX_SEED + 1}, "seed: got 18446744073709551616"),
    ({"width": 500}, "width: got 500, expected a multiple of 8 (try 496)"),
    ({"height": 9}, "height: got 9, expected a multiple of 8 (try 8)"),
    ({"width": 4}, "width: got 4, expected a whole number from 8 to 8192"),
    ({"height": 8200}, "height: got 8200, expected a whole number from 8 to 8192"),
    ({"images": 0}, "images: got 0, expected a whole number from 1 to 4096"),
    ({"images": None}, "images: got None"),
    ({"strength": 1.1}, "strength: got 1.1, expected a number from 0 to 1"),
    ({"strength": None}, "strength: got None, expected a number"),
    ({"loras": "a.safetensors"}, "loras: got 'a.safetensors', expected a file and its scale"),
    ({"loras": (("a.safetensors", "b"),)}, "loras: scale of a.safetensors: got 'b', expected a number from -100 to"),
    ({"loras": (("a.safetensors",),)}, "loras: got ('a.safetensors',), expected a file and its scale"),
    ({"loras": 3}, "loras: got 3, expected a file"),
    ({"edit": "a.safetensors"}, "edit: got 'a.safetensors', expected a file and a share"),
    ({"edit": ("a.safetensors", 5)}, "edit: share: got 5, expected a number from -2 to 3"),
    ({"concepts": "a.safetensors"}, "concepts: got 'a.safetensors', expected files of textual inversion"),
    ({"concepts": ("a", 3)}, "concepts: got ('a', 3), expected files"),
    ({"reuse": 0}, "reuse: got 0, expected a whole number from 1 to 1000"),
    ({"reuse": 1.5}, "reuse: got 1.5, expected a whole number"),
    ({"mask_image": "mask.png"}, "mask_image: got a mask without an init_image; give the picture that it masks"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_invalid_field_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as error:
        Request(**wrong)
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, GradinaError)


def test_every_checked_field_is_tested() -> None:
    assert {name for wrong, _ in WRONG for name in wrong} == {f.name for f in fields(Request)} - {"init_image"}


def test_limits_are_inclusive() -> None:
    Request(steps=1, guidance_scale=0, eta=0, seed=0, width=8, height=8192, images=1, strength=0, guidance_rescale=1)
    Request(steps=1000, guidance_scale=1000.0, eta=1, seed=MAX_SEED, strength=1, guidance_interval=(0, 0))
    for sampler in SAMPLER_NAMES:
        Request(sampler=sampler)  # type: ignore[arg-type]
    for schedule in SCHEDULE_NAMES:
        Request(schedule=schedule)  # type: ignore[arg-type]
    Request(init_image=Image.new("RGB", (8, 8)), mask_image="mask.png")


def test_a_request_is_frozen_and_lists_become_tuples() -> None:
    request = Request(prompt=["a", "b"], guidance_interval=[0.3, 5.0])  # type: ignore[arg-type]
    assert request.prompt == ("a", "b")
    assert request.guidance_interval == (0.3, 5.0)
    with pytest.raises(FrozenInstanceError):
        request.steps = 3  # type: ignore[misc]


def test_seed_zero_is_a_seed() -> None:
    assert Request(seed=0).resolved(Defaults()).seed == 0


def test_resolved_fills_open_fields_alone() -> None:
    defaults = Defaults(steps=7, guidance_scale=3.0, sampler="ddim", schedule="trailing", width=32, height=32)
    request = Request(prompt="a", steps=9, seed=5).resolved(defaults)
    assert request == Request(
        prompt="a", steps=9, guidance_scale=3.0, sampler="ddim", schedule="trailing", seed=5, width=32, height=32
    )
    assert request.resolved(Defaults()) == request


def test_resolved_draws_a_new_seed() -> None:
    seeds = {Request().resolved(Defaults()).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(seed is not None and 0 <= seed < 2**32 for seed in seeds)


def test_prompts_in_order() -> None:
    assert Request(prompt="a", images=2).prompts == ("a", "a")
    assert Request(prompt=("a", "b"), images=2).prompts == ("a", "a", "b", "b")
    assert Request().prompts == ("",)


@given(st.lists(st.text(max_size=3), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 2**32))
def test_alone_is_the_request_of_one_picture(prompts: list[str], images: int, seed: int) -> None:
    request = Request(prompt=tuple(prompts), images=images, seed=seed, steps=3)
    for i, prompt in enumerate(request.prompts):
        alone = request.alone(i)
        assert alone == Request(prompt=prompt, seed=seed + i, steps=3)
        assert alone.alone(0) == alone


def test_alone_needs_a_seed() -> None:
    with pytest.raises(RequestError, match=r"seed: this request has none yet; call resolved\(\) first"):
        Request().alone(0)


def test_choice_suggests_the_nearest() -> None:
    assert check_choice("fruit", "pear", ("apple", "pear")) == "pear"
    with pytest.raises(
        RequestError, match=r"^fruit: there is no 'paer'; did you mean 'pear'\? \(choices: apple, pear\)$"
    ):
        check_choice("fruit", "paer", ("apple", "pear"))
    with pytest.raises(RequestError, match=r"^fruit: there is no 'stone' \(choices: apple, pear\)$"):
        check_choice("fruit", "stone", ("apple", "pear"))


def test_request_imports_nothing_heavy() -> None:
    code = "import sys, gradina.request; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
