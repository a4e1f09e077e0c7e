"""The A1111 text: round trips, texts of the web UI, and notes on what is not honoured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gradina.errors import RequestError
from gradina.images.infotext import SAMPLERS, SCHEDULES, model_of, read_parameters, write_parameters
from gradina.request import SAMPLER_NAMES, SCHEDULE_NAMES, Defaults, Request

from .conftest import NEW, OLD, requests

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


MODEL = {"name": "digits, small: v1", "hash": "0123abcd"}


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30), max_size=4).map("\n".join)


TAME = LINES.filter(lambda text: "Steps:" not in text and "Negative prompt:" not in text)


@given(requests(TAME))
@settings(QUICK, max_examples=300)
def test_a1111_round_trip(request_: Request) -> None:
    text = write_parameters(request_, MODEL, "0.1.0")
    got, notes = read_parameters(text)
    assert got == request_
    assert notes == []
    assert model_of(text) == MODEL


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
TAME_WORDS = WORDS.filter(lambda text: "Steps:" not in text and "Negative prompt:" not in text)


@given(
    TAME_WORDS,
    TAME_WORDS,
    WORDS,
    st.sampled_from(SAMPLER_NAMES),
    st.sampled_from(SCHEDULE_NAMES),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=200, deadline=None)
def test_a1111_round_trip_of_any_prompt(
    prompt: str, negative: str, name: str, sampler: str, schedule: str, seed: int
) -> None:
    loras = ((f"x{name}\n", 0.5),)
    request = Request(
        prompt=prompt,
        negative_prompt=negative,
        steps=3,
        sampler=sampler,
        schedule=schedule,
        seed=seed,
        loras=loras,  # type: ignore[arg-type]
    )
    assert read_parameters(write_parameters(request, None, "0.1.0")) == (request, [])


def test_written_text() -> None:
    request = Request(prompt="a cat\nin a hat", negative_prompt="blurry", seed=1).resolved(Defaults())
    assert write_parameters(request, {"name": "v1-5", "hash": "6ce0161689"}, "0.1.0") == (
        "a cat\nin a hat\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, "
        "Model hash: 6ce0161689, Model: v1-5, RNG: CPU, Version: gradina 0.1.0"
    )
    again = write_parameters(replace(request, init_image=Image.new("RGB", (8, 8)), strength=0.6))
    assert "Denoising strength: 0.6" in again
    assert read_parameters(again)[0].strength == 0.6
    assert "give it as init_image" in read_parameters(again)[1][0]


def test_every_sampler_and_schedule_has_a_name() -> None:
    assert sorted(name for _, name, _, _ in SAMPLERS) == sorted(SAMPLER_NAMES)
    assert set(SCHEDULES) == set(SCHEDULE_NAMES)
    assert {schedule for row in SAMPLERS for schedule in row[2:]} <= set(SCHEDULE_NAMES)


def test_schedule_in_the_sampler_name() -> None:
    request, notes = read_parameters(OLD)
    assert request == Request(
        prompt="masterpiece, a (red:1.3) cat \nsitting on a [wall]",
        negative_prompt="ugly, blurry\ndeformed",
        steps=25, sampler="dpmpp_2m", schedule="karras", guidance_scale=7.0, seed=965400086, width=512, height=768,
    )  # fmt: skip
    expected = ("Clip skip: 2 (", "ENSD: 31337 (", "<lora:fluffy:0.8> is left out", "weights such as", "graphics card")
    assert len(notes) == len(expected)
    assert all(words in note for words, note in zip(expected, notes, strict=True))
    assert model_of(OLD) == {"hash": "45dee52b"}


def test_quoted_values() -> None:
    request, notes = read_parameters(NEW)
    assert (request.sampler, request.schedule, request.strength) == ("dpmpp_2m_sde", "exponential", Request().strength)
    assert (request.width, request.height, request.seed) == (1024, 1024, 42)
    assert notes[0].startswith(
        "Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent (nearest, exact) (not honou"
    )
    assert notes[1].startswith("Lora hashes: fluffy: e3b0c44298fc, other: 1c2d (")
    assert notes[2].startswith('TI hashes: x: "y" (')
    assert len(notes) == 3
    assert model_of(NEW) == {"name": "sd_xl_base_1.0", "hash": "31e35c80fc"}


@pytest.mark.parametrize(
    ("named", "sampler", "schedule"),
    [
        ("Sampler: Euler a", "euler_ancestral", "linspace"),
        ("Sampler: DPM++ SDE Karras", "dpmpp_sde", "karras"),
        ("Sampler: DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "linspace"),
        ("Sampler: DPM++ 2M, Schedule type: Align Your Steps", "dpmpp_2m", "ays"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler", "sgm_uniform"),
        ("Sampler: DDIM", "ddim", "leading"),
        ("Sampler: PLMS", "pndm", "leading"),
        ("Sampler: Euler, Schedule type: Simple", "euler", "trailing"),
    ],
)
def test_samplers_and_schedules(named: str, sampler: str, schedule: str) -> None:
    request, notes = read_parameters(f"x\nSteps: 20, {named}, RNG: CPU")
    assert (request.sampler, request.schedule) == (sampler, schedule)
    assert notes == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Sampler: DPM2 a Karras", "Sampler: DPM2 a Karras (not available; euler_ancestral is used instead)"),
        ("Schedule type: KL Optimal", "Schedule type: KL Optimal (not available"),
        ("Variation seed: 3, Variation seed strength: 0.1", "Variation seed: 3, Variation seed strength: 0.1 (not"),
        ("Face restoration: CodeFormer", "Face restoration: CodeFormer (not honoured: faces"),
        ("Denoising strength: 0.5, Mask blur: 4", "give it as mask_image"),
        ("Denoising strength: 0.5", "give it as init_image"),
        (
            'ControlNet 0: "Module: canny, Weight: 1"',
            "ControlNet 0: Module: canny, Weight: 1 (not honoured: ControlNet",
        ),
        ("Flux: capacitor", "Flux: capacitor (not honoured: unknown)"),
        ("loose words", "loose words (not honoured: unknown)"),
        ("CFG scale: many", "CFG scale: many (cannot be used, left open)"),
        ("CFG scale: inf", "CFG scale: inf (cannot be used, left open)"),
        ("Seed: -1", "Seed: -1 (cannot be used, left open)"),
        ("Size: 515x512", "Size: 515x512 (cut to multiples of 8)"),
        ("Size: 99999x8", "Size: 99999x8 (cannot be used, left open)"),
        ("Steps: " + "9" * 400, "(cannot be used, left open)"),
        ("Steps: " + "9" * 5000, "(cannot be used, left open)"),
    ],
)
def test_unsupported_settings_are_noted(line: str, words: str) -> None:
    notes = read_parameters(f"x\nSteps: 20, RNG: CPU, {line}")[1]
    assert any(words in note for note in notes), notes
    assert all(len(note) < 400 for note in notes)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("a AND b", "AND is read"), ("a BREAK b", "BREAK is read"), ("((a))", "weights such as"), ("[a:b:0.5]", "weights"),
     ("<hypernet:x:1>", "left out")],
)  # fmt: skip
def test_prompt_syntax_is_noted(prompt: str, words: str) -> None:
    line = "Steps: 20, Sampler: Euler, Seed: 1, RNG: CPU"
    assert words in read_parameters(f"{prompt}\n{line}")[1][0]
    assert words in read_parameters(f"x\nNegative prompt: {prompt}\n{line}")[1][0]
    assert read_parameters(f"{prompt}\n{line}, Version: gradina 0.1.0")[1] == []
    assert read_parameters(r"a \(cat\), <b> and c" + f"\n{line}")[1] == []


def test_texts_without_some_parts() -> None:
    assert read_parameters("Steps: 4, Sampler: Euler, Seed: 1")[0].prompt == ""
    assert read_parameters("Negative prompt: b\nSteps: 4, Sampler: Euler")[0].negative_prompt == "b"
    request, notes = read_parameters("a: b, c\nd")
    assert request.prompt == "a: b, c\nd"
    assert "no line of parameters" in notes[0]
    request, notes = read_parameters("x\nSteps: 4, Sampler: Euler, RNG: CPU\nTemplate: {a|b}\nNegative Template: c")
    assert request.prompt == "x"
    assert notes == ["Template: {a|b} Negative Template: c (lines after the parameters, left out)"]


@given(st.text(st.sampled_from('Steps: 20,"\\\n<lora:x:1>()AND'), max_size=200))
@settings(QUICK, max_examples=300)
def test_any_text_with_tags_is_read(text: str) -> None:
    request, notes = read_parameters(text)
    assert isinstance(request, Request)
    assert not any("\n" in note for note in notes)


PIECES = (
    "Steps: 20", "Steps:", "Negative prompt:", "Sampler: Euler a", ", ", "\n", "\r\n", '"', "\\", ":", "[", "{", "}",
    "Seed: 1", "CFG scale: nan", "Size: 3x5", "Loras: [[", "Edit: {}", "a kite", "<lora:x:1>",
    "Guidance interval: 1", "\0",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_pieces_are_read(text: str) -> None:
    try:
        request, notes = read_parameters(text)
    except RequestError as error:
        pytest.fail(f"{error}")
    assert isinstance(request, Request)
    assert not any("\n" in note for note in notes)


@pytest.mark.parametrize("evil", ["a" * 1_000_000, 'a:"' * 300_000, "a:" * 300_000, "(" * 500_000, "<lora:" * 100_000])
def test_reading_time_is_linear(evil: str) -> None:
    """Quadratic time would take minutes."""
    assert read_parameters(f"x\nSteps: 20, {evil}")[0].prompt == "x"


LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 77, Size: 512x768, RNG: CPU"


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("Steps: 20.0, Seed: 12.0, CFG scale: 7,5", {"steps": 20, "seed": 12, "guidance_scale": 7.5}),
        ("Steps: 20, Seed: 18446744073709551615, Size: 512*768px", {"seed": 2**64 - 1, "width": 512, "height": 768}),
        ("Steps: 20, Guidance Scale: 3,5, Width: 512, Height: 768",
         {"guidance_scale": 3.5, "width": 512, "height": 768}),
        ("steps: 20, cfg scale: 2, size: 512 x 768", {"steps": 20, "guidance_scale": 2, "width": 512, "height": 768}),
        ("Steps: 20, Size: 64x64, Width: 512, Height: 512", {"width": 64, "height": 64}),
    ],
)  # fmt: skip
def test_number_formats(line: str, values: dict[str, float]) -> None:
    request, notes = read_parameters(f"a kite\n{line}, RNG: CPU")
    assert {name: getattr(request, name) for name in values} == values
    assert notes == []


def test_invalid_values_are_noted() -> None:
    request, notes = read_parameters(f"x\n{LINE}, Loras: {'[' * 3000}, Edit: 3, Eta DDIM: 0.5, Guidance interval: 1")
    assert (request.loras, request.edit, request.eta) == ((), None, 0.5)
    assert [note.split(":")[0] for note in notes] == ["Loras", "Guidance interval", "Edit"]
    assert read_parameters("x\nSteps: 20, Size: big, RNG: CPU")[1] == ["Size: big (cannot be used, left open)"]
    assert read_parameters("x\nSteps: 20, Size: 64 x 128, RNG: CPU")[0].height == 128


def test_another_autoencoder_is_named() -> None:
    model = {"name": "kites", "hash": "0123456789", "vae": "better, it is.safetensors", "vae_hash": "abcdef0123"}
    text = write_parameters(Request(prompt="a kite", steps=3, seed=1), model, "1.0")
    assert 'VAE: "better, it is.safetensors", VAE hash: abcdef0123' in text
    assert model_of(text) == model
    assert read_parameters(text)[1] == []
    a1111_text = text.replace("Version: gradina 1.0", "Version: v1.10.1")
    assert model_of(a1111_text) == {"name": "kites", "hash": "0123456789"}
    assert any(note.startswith("VAE: better") for note in read_parameters(a1111_text)[1])
