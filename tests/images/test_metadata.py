"""A picture's file carries its request: round trips, files of others, and hostile files."""

from __future__ import annotations

import io
import json
import logging
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradina.errors import DiskError, PictureError, RequestError
from gradina.images.infotext import SAMPLERS, SCHEDULES, model_of, read_parameters, write_parameters
from gradina.images.metadata import from_json, read_picture, to_json
from gradina.images.open import SAVE_OPTIONS, open_mask, open_picture
from gradina.images.picture import Picture, save_picture
from gradina.images.text_chunks import read_texts
from gradina.request import RATES_NAMES, SAMPLER_NAMES, SCHEDULE_NAMES, Defaults, Request

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MODEL = {"name": "digits, small: v1", "hash": "0123abcd"}


def picture(request: Request, model: dict[str, str] | None = MODEL) -> Picture:
    request = request.resolved(Defaults(width=16, height=8))
    return Picture(Image.effect_noise((16, 8), 60).convert("RGB"), request.seed or 0, request, model)


def requests(text: st.SearchStrategy[str]) -> st.SearchStrategy[Request]:
    """Requests of one picture with every field that a text can hold."""
    sigma = st.floats(0, 80)
    return st.builds(
        Request,
        prompt=text,
        negative_prompt=text,
        steps=st.integers(1, 1000),
        guidance_scale=st.floats(0, 1000),
        guidance_rescale=st.floats(0, 1),
        guidance_interval=st.none() | st.tuples(sigma, sigma).map(lambda ends: (min(ends), max(ends))),
        sampler=st.sampled_from(SAMPLER_NAMES),
        schedule=st.sampled_from(SCHEDULE_NAMES),
        eta=st.none() | st.floats(0, 1),
        rates=st.none() | st.sampled_from(RATES_NAMES),
        reuse=st.integers(1, 1000),
        edit=st.none() | st.tuples(st.text(min_size=1), st.floats(-2, 3)),
        concepts=st.lists(st.text(min_size=1)).map(tuple),
        loras=st.lists(st.tuples(st.text(min_size=1), st.floats(-100, 100))).map(tuple),
        seed=st.integers(0, 2**64 - 1),
        width=st.integers(1, 512).map(lambda n: 8 * n),
        height=st.integers(1, 512).map(lambda n: 8 * n),
    )


ANY = requests(st.text(st.characters(), max_size=60))  # lone surrogates, control characters and all
LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30), max_size=4).map("\n".join)
TAME = LINES.filter(lambda text: "Steps:" not in text and "Negative prompt:" not in text)


# There and back


@given(ANY)
@QUICK
def test_json_there_and_back(request_: Request) -> None:
    assert from_json(to_json(request_)) == request_
    assert to_json(request_).isascii()


@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
@given(request_=ANY)
@QUICK
def test_files_there_and_back(tmp_path: Path, suffix: str, request_: Request) -> None:
    path = tmp_path / f"a{suffix}"
    save_picture(picture(request_), path)
    record = read_picture(path)
    assert record.request == request_
    assert record.model == MODEL
    assert record.source == "gradina"
    assert record.notes == ()
    with Image.open(path) as image:
        image.load()
        assert image.size == (16, 8)


@given(requests(TAME))
@settings(QUICK, max_examples=300)
def test_the_a1111_text_there_and_back(request_: Request) -> None:
    text = write_parameters(request_, MODEL, "0.1.0")
    got, notes = read_parameters(text)
    assert got == request_
    assert notes == []
    assert model_of(text) == MODEL


def test_the_a1111_text_as_it_is_written() -> None:
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


def test_every_sampler_and_schedule_has_its_name() -> None:
    assert sorted(ours for _, ours, _, _ in SAMPLERS) == sorted(SAMPLER_NAMES)
    assert {ours for _, ours in SCHEDULES} == set(SCHEDULE_NAMES)
    assert {schedule for row in SAMPLERS for schedule in row[2:]} <= set(SCHEDULE_NAMES)


@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
def test_the_text_lies_where_others_look_for_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_picture(picture(Request(prompt="Кот, 猫 🐈", seed=3)), path)
    with Image.open(path) as image:
        if suffix == ".png":
            text = image.info["parameters"]
        else:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment.startswith(b"UNICODE\0")
            text = comment[8:].decode("utf-16-be")
    assert text.startswith("Кот, 猫 🐈\nSteps: 20, ")
    assert read_picture(path).parameters == text


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pixels_are_kept(tmp_path: Path, suffix: str) -> None:
    one = picture(Request(prompt="x"))
    save_picture(one, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.convert("RGB").tobytes() == one.image.tobytes()


# Pictures that a picture was drawn from


def test_pictures_in_memory_are_embedded() -> None:
    photo, mask = Image.effect_noise((20, 10), 80).convert("RGBA"), Image.new("1", (20, 10), 1)
    got = from_json(to_json(Request(init_image=photo, mask_image=mask, strength=0.5)))
    assert got.init_image == open_picture(photo)
    assert got.mask_image == open_mask(mask)
    assert from_json(to_json(got)) == got


def test_an_embedded_picture_is_no_larger_than_it_was_used(tmp_path: Path) -> None:
    save_picture(picture(Request(init_image=Image.effect_noise((640, 320), 80))), tmp_path / "a.png")
    got = read_picture(tmp_path / "a.png").request.init_image
    assert isinstance(got, Image.Image)
    assert got.size == (16, 8)
    small = Image.new("RGB", (5, 3), (1, 2, 3))
    save_picture(picture(Request(init_image=small)), tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").request.init_image == small


def test_a_file_is_named_with_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    request = Request(init_image=Path("photo.png"))
    text = to_json(request)
    assert json.loads(text)["init_image"]["path"] == "photo.png"
    assert from_json(text).init_image == "photo.png"
    save_picture(picture(request), "out.png")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_picture(tmp_path / "out.png").request.init_image == str(tmp_path / "photo.png")
    with pytest.raises(PictureError, match=r"^init_image: photo\.png is not there; put the one with sha256 "):
        from_json(text)

    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    with pytest.raises(PictureError, match="is not the picture any more that it was"):
        read_picture(tmp_path / "out.png")
    record = read_picture(tmp_path / "out.png", strict=False)
    assert "any more" in record.notes[0]
    assert record.request.init_image == "photo.png"


def test_a_missing_file_is_said_when_saving(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"mask_image: .*none\.png does not exist"):
        to_json(Request(init_image=Image.new("L", (8, 8)), mask_image=tmp_path / "none.png"))


def test_a_jpeg_without_room_keeps_the_a1111_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = Image.effect_noise((256, 256), 90)
    request = Request(prompt="x", init_image=noise, seed=1).resolved(Defaults())
    with caplog.at_level(logging.WARNING):
        save_picture(Picture(noise, 1, request), tmp_path / "a.jpg")
    assert "too large for a JPEG" in caplog.text
    assert read_picture(tmp_path / "a.jpg").source == "a1111"
    save_picture(Picture(noise, 1, request), tmp_path / "a.webp")
    assert read_picture(tmp_path / "a.webp").request.init_image == open_picture(noise)
    with pytest.raises(RequestError, match="too long for a JPEG"):
        save_picture(picture(Request(prompt="x" * 40_000)), tmp_path / "b.jpg")


# Saving what cannot be saved


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no '\.bmp'.*\.png, \.jpg, \.jpeg, \.webp"):
        save_picture(picture(Request()), tmp_path / "a.bmp")
    with pytest.raises(RequestError, match=r"draws 3 pictures; describe one, request\.alone\(i\)"):
        save_picture(picture(Request(images=3)), tmp_path / "a.png")
    with pytest.raises(DiskError, match="make the folder first"):
        picture(Request()).save(tmp_path / "none" / "a.png")
    assert not list(tmp_path.iterdir())


# Files of A1111


OLD = """masterpiece, a (red:1.3) cat <lora:fluffy:0.8>
sitting on a [wall]
Negative prompt: ugly, blurry
deformed
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, Clip skip: 2, \
ENSD: 31337"""
NEW = """a lighthouse
Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 6.5, Seed: 42, Size: 1024x1024, \
Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Denoising strength: 0.4, RNG: CPU, Hires upscale: 1.5, \
Hires steps: 10, Hires upscaler: "Latent (nearest, exact)", Lora hashes: "fluffy: e3b0c44298fc, other: 1c2d", \
TI hashes: "x: \\"y\\"", Version: v1.10.1"""


def test_old_texts_name_the_schedule_in_the_sampler() -> None:
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


def test_new_texts_quote_their_values() -> None:
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
def test_samplers_and_schedules_by_their_names(named: str, sampler: str, schedule: str) -> None:
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
        ("Flux: capacitor", "Flux: capacitor (not honoured: not known here)"),
        ("loose words", "loose words (not honoured: not known here)"),
        ("CFG scale: many", "CFG scale: many (cannot be used, left open)"),
        ("CFG scale: inf", "CFG scale: inf (cannot be used, left open)"),
        ("Seed: -1", "Seed: -1 (cannot be used, left open)"),
        ("Size: 515x512", "Size: 515x512 (cut to multiples of 8)"),
        ("Size: 99999x8", "Size: 99999x8 (cannot be used, left open)"),
        ("Steps: " + "9" * 400, "(cannot be used, left open)"),
        ("Steps: " + "9" * 5000, "(cannot be used, left open)"),
    ],
)
def test_what_cannot_be_honoured_is_said(line: str, words: str) -> None:
    notes = read_parameters(f"x\nSteps: 20, RNG: CPU, {line}")[1]
    assert any(words in note for note in notes), notes
    assert all(len(note) < 400 for note in notes)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("a AND b", "AND is read"), ("a BREAK b", "BREAK is read"), ("((a))", "weights such as"), ("[a:b:0.5]", "weights"),
     ("<hypernet:x:1>", "left out")],
)  # fmt: skip
def test_syntax_of_prompts_is_said(prompt: str, words: str) -> None:
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
def test_any_text_can_be_read(text: str) -> None:
    request, notes = read_parameters(text)
    assert isinstance(request, Request)
    assert not any("\n" in note for note in notes)


@pytest.mark.parametrize("evil", ["a" * 1_000_000, 'a:"' * 300_000, "a:" * 300_000, "(" * 500_000, "<lora:" * 100_000])
def test_long_texts_take_no_long_time(evil: str) -> None:
    read_parameters(f"x\nSteps: 20, {evil}")


def a1111_file(path: Path, text: str) -> None:
    """A file as that web UI writes it: PngInfo's text, or piexif's big-endian UserComment."""
    image = Image.new("RGB", (8, 8))
    if path.suffix == ".png":
        info = PngInfo()
        info.add_text("parameters", text)
        image.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
        image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
@pytest.mark.parametrize("text", [OLD, NEW, NEW.replace("lighthouse", "灯台 café")])
def test_files_of_a1111(tmp_path: Path, suffix: str, text: str) -> None:
    a1111_file(tmp_path / f"a{suffix}", text)
    record = read_picture(tmp_path / f"a{suffix}")
    request, notes = read_parameters(text)
    assert (record.source, record.request, record.notes, record.parameters) == ("a1111", request, tuple(notes), text)
    assert record.version is None


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    body = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in (header, *chunks)
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_every_kind_of_chunk_also_behind_the_pixels(tmp_path: Path) -> None:
    path, text = tmp_path / "a.png", NEW.encode()
    for chunk in (
        (b"tEXt", b"parameters\0" + text),
        (b"zTXt", b"parameters\0\0" + zlib.compress(text)),
        (b"iTXt", b"parameters\0\0\0en\0parameters\0" + text),
        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(text)),
    ):
        path.write_bytes(png((b"tEXt", b"no separator"), (b"IDAT", b"pixels"), chunk, (b"IEND", b"")))
        assert read_picture(path).parameters == NEW


def test_comments_in_other_encodings(tmp_path: Path) -> None:
    for comment in (
        b"UNICODE\0" + NEW.encode("utf-16-le"), b"ASCII\0\0\0" + NEW.encode(), NEW.encode(), b"\0" * 8 + NEW.encode()
    ):  # fmt: skip
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
        assert read_picture(tmp_path / "a.jpg").request == read_parameters(NEW)[0]


# Files that carry nothing, something else, or harm


def test_files_without_a_request(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.gif")
    (tmp_path / "words.png").write_text("hello")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0Screenshot"  # as a Mac writes it
    Image.new("RGB", (8, 8)).save(tmp_path / "screen.jpg", exif=exif)
    for name, words in (
        ("plain.png", r"carries no request; give a picture drawn by gradina"),
        ("plain.jpg", "carries no request"),
        ("plain.gif", "carries no request"),
        ("screen.jpg", "carries no request"),
        ("words.png", "is no picture"),
        ("none.png", "does not exist"),
    ):
        with pytest.raises(PictureError, match=words) as error:
            read_picture(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "comfy.png").write_bytes(png((b"tEXt", b"workflow\0{}"), (b"tEXt", b"prompt\0{}")))
    with pytest.raises(PictureError, match=r"comfy\.png: carries ComfyUI's prompt, in which there is no sampler"):
        read_picture(tmp_path / "comfy.png")


def test_texts_made_to_fill_the_memory(tmp_path: Path) -> None:
    bomb = zlib.compress(b"a" * (70 * 2**20), 9)
    path = tmp_path / "bomb.png"
    path.write_bytes(png((b"zTXt", b"parameters\0\0" + bomb)))
    with pytest.raises(PictureError, match="more than 64 MiB of text"):
        read_picture(path)
    path.write_bytes(png() + struct.pack(">I", 2**31 - 1) + b"tEXt" + b"parameters\0x")
    with pytest.raises(PictureError, match="more than 64 MiB of text"):
        read_picture(path)


@given(st.binary(max_size=300))
@QUICK
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for head in (png(), png((b"tEXt", b"gradina\0" + data)), b"\xff\xd8\xff\xe1", b"RIFF"):
        (tmp_path / "a.png").write_bytes(head + data)
        with suppress(PictureError, RequestError):
            read_picture(tmp_path / "a.png")


def ours(tmp_path: Path, **changes: Any) -> Path:
    """A file with our JSON, changed at will."""
    data = {"format": 1, "gradina": "9.9", "model": None, "request": json.loads(to_json(Request(prompt="x")))} | changes
    info = PngInfo()
    info.add_text("gradina", json.dumps(data))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    return tmp_path / "a.png"


def test_fields_of_a_later_version_are_reported(tmp_path: Path) -> None:
    record = read_picture(ours(tmp_path, request={"prompt": "x", "warp": 3}, format=2))
    assert record.request == Request(prompt="x")
    assert record.version == "9.9"
    assert record.notes[0] == "warp: 3 (not known to this gradina, left out)"
    assert "newer form" in record.notes[1]
    with pytest.raises(RequestError, match=r"there is no 'step'; did you mean 'steps'\?"):
        from_json('{"step": 3}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is no JSON"), ("[" * 100_000, "this is no JSON"), ("[]", "expected a JSON object"),
        ('{"steps": 0}', "steps: got 0"), ('{"steps": 1e999}', "steps: got inf"),
        ('{"steps": true}', "steps: got True"),
        ('{"prompt": 5}', "prompt: got 5"), ('{"prompt": ["a", 5]}', "prompt: got"),
        ('{"sampler": {}}', "sampler: there is"),
        ('{"guidance_interval": ["a", "b"]}', "guidance_interval"), ('{"guidance_interval": 3}', "guidance_interval"),
        ('{"init_image": "/etc/passwd"}', "init_image: got '/etc/passwd', expected an object of png"),
        ('{"init_image": {"path": 5, "sha256": "a"}}', "expected an object of png"),
        ('{"init_image": {"png": "?"}}', "base64 text is damaged"),
        ('{"init_image": {"png": "aGk="}}', "is no picture"),
        ('{"init_image": {"path": "/dev/zero", "sha256": "a"}}', "is not there"),
        ('{"init_image": {"path": "a\\u0000b", "sha256": "a"}}', "is not there"),
    ],
)  # fmt: skip
def test_json_that_is_no_request(text: str, words: str) -> None:
    with pytest.raises((RequestError, PictureError), match=words) as error:
        from_json(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_errors_of_a_request_name_its_file(tmp_path: Path) -> None:
    for request, words in (
        ({"prompt": 3}, "prompt: got 3, expected a text"),
        ({"steps": 0}, "steps: got 0"),
        ({"loras": [[]]}, "loras: got"),
        ({"init_image": {"path": "/none", "sha256": "0"}}, "init_image: /none is not there"),
        ({"init_image": 3}, "init_image: got '3'"),
    ):
        path = ours(tmp_path, request=request)
        with pytest.raises((RequestError, PictureError)) as error:
            read_picture(path)
        assert str(error.value).startswith(f"picture: {path}: {words}")


def test_a_request_is_shown_whose_picture_is_gone(tmp_path: Path) -> None:
    record = read_picture(ours(tmp_path, request={"init_image": {"path": "/none", "sha256": "0"}}), strict=False)
    assert json.loads(to_json(record.request, strict=False))["init_image"] == {"path": "/none"}
    with pytest.raises(PictureError, match="/none does not exist"):
        to_json(record.request)


def test_an_embedded_bomb_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    import base64

    value = {"png": base64.b64encode(file.getvalue()).decode()}
    with pytest.raises(PictureError, match="5000 x 5000 pixels"):
        read_picture(ours(tmp_path, request={"init_image": value}))


def test_json_of_others_falls_back_to_the_a1111_text(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("gradina", '{"not": "ours"}')
    info.add_text("parameters", NEW)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_picture(tmp_path / "a.png").source == "a1111"
    assert set(read_texts(tmp_path / "a.png")) == {"gradina", "parameters"}


def test_every_field_is_in_the_json() -> None:
    assert set(json.loads(to_json(Request()))) == {field.name for field in fields(Request)}


def test_none_of_this_imports_torch() -> None:
    modules = "sys, gradina.images.metadata, gradina.images.grid"
    code = f"import {modules}\nprint([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_text_names_another_autoencoder() -> None:
    model = {"name": "kites", "hash": "0123456789", "vae": "better, it is.safetensors", "vae_hash": "abcdef0123"}
    text = write_parameters(Request(prompt="a kite", steps=3, seed=1), model, "1.0")
    assert 'VAE: "better, it is.safetensors", VAE hash: abcdef0123' in text
    assert model_of(text) == model
    assert read_parameters(text)[1] == []
    theirs = text.replace("Version: gradina 1.0", "Version: v1.10.1")
    assert model_of(theirs) == {"name": "kites", "hash": "0123456789"}
    assert any(note.startswith("VAE: better") for note in read_parameters(theirs)[1])
