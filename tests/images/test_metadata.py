"""Requests in files: round trips as JSON, files of A1111, and hostile files."""

from __future__ import annotations

import html
import io
import json
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from gradina.errors import PictureError, RequestError
from gradina.images.infotext import read_parameters
from gradina.images.metadata import read_picture
from gradina.images.open import SAVE_OPTIONS, open_mask, open_picture
from gradina.images.picture import Picture, from_json, to_json
from gradina.images.text_chunks import read_texts
from gradina.request import Defaults, Request

from .conftest import NEW, OLD, requests
from .programs.conftest import A1111, FILES, KITE, NOVEL_CHUNKS, comfy, record_of, write_png

MODEL = {"name": "digits, small: v1", "hash": "0123abcd"}
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


ANY = requests(st.text(st.characters(), max_size=60))  # lone surrogates, control characters and all


@given(ANY)
@QUICK
def test_json_round_trip(request_: Request) -> None:
    assert from_json(to_json(request_)) == request_
    assert to_json(request_).isascii()


def test_pictures_in_memory_are_embedded() -> None:
    photo, mask = Image.effect_noise((20, 10), 80).convert("RGBA"), Image.new("1", (20, 10), 1)
    got = from_json(to_json(Request(init_image=photo, mask_image=mask, strength=0.5)))
    assert got.init_image == open_picture(photo)
    assert got.mask_image == open_mask(mask)
    assert from_json(to_json(got)) == got


def picture(request: Request, model: dict[str, str] | None = MODEL) -> Picture:
    request = request.resolved(Defaults(width=16, height=8))
    return Picture(Image.effect_noise((16, 8), 60).convert("RGB"), request.seed or 0, request, model)


def test_file_is_named_with_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    request = Request(init_image=Path("photo.png"))
    text = to_json(request)
    assert json.loads(text)["init_image"]["path"] == "photo.png"
    assert from_json(text).init_image == "photo.png"
    picture(request).save("out.png")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_picture(tmp_path / "out.png").request.init_image == str(tmp_path / "photo.png")
    with pytest.raises(PictureError, match=r"^init_image: photo\.png is not there; put the one with sha256 "):
        from_json(text)

    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    with pytest.raises(PictureError, match="has changed since then"):
        read_picture(tmp_path / "out.png")
    record = read_picture(tmp_path / "out.png", strict=False)
    assert "has changed" in record.notes[0]
    assert record.request.init_image == "photo.png"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"mask_image: .*none\.png does not exist"):
        to_json(Request(init_image=Image.new("L", (8, 8)), mask_image=tmp_path / "none.png"))


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


def test_every_chunk_type_also_after_the_pixels(tmp_path: Path) -> None:
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
        ("words.png", "is not a picture"),
        ("none.png", "does not exist"),
    ):
        with pytest.raises(PictureError, match=words) as error:
            read_picture(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "comfy.png").write_bytes(png((b"tEXt", b"workflow\0{}"), (b"tEXt", b"prompt\0{}")))
    with pytest.raises(PictureError, match=r"comfy\.png: carries ComfyUI's prompt, in which there is no known sampler"):
        read_picture(tmp_path / "comfy.png")


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
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


def gradina_file(tmp_path: Path, **changes: Any) -> Path:
    """A file with our JSON, changed at will."""
    data = {"format": 1, "gradina": "9.9", "model": None, "request": json.loads(to_json(Request(prompt="x")))} | changes
    info = PngInfo()
    info.add_text("gradina", json.dumps(data))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    return tmp_path / "a.png"


def test_unknown_fields_are_noted(tmp_path: Path) -> None:
    record = read_picture(gradina_file(tmp_path, request={"prompt": "x", "warp": 3}, format=2))
    assert record.request == Request(prompt="x")
    assert record.version == "9.9"
    assert record.notes[0] == "warp: 3 (not known to this gradina, left out)"
    assert "newer form" in record.notes[1]
    with pytest.raises(RequestError, match=r"there is no 'step'; did you mean 'steps'\?"):
        from_json('{"step": 3}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is not JSON"), ("[" * 100_000, "this is not JSON"), ("[]", "expected a JSON object"),
        ('{"steps": 0}', "steps: got 0"), ('{"steps": 1e999}', "steps: got inf"),
        ('{"steps": true}', "steps: got True"),
        ('{"prompt": 5}', "prompt: got 5"), ('{"prompt": ["a", 5]}', "prompt: got"),
        ('{"sampler": {}}', "sampler: there is"),
        ('{"guidance_interval": ["a", "b"]}', "guidance_interval"), ('{"guidance_interval": 3}', "guidance_interval"),
        ('{"init_image": "/etc/passwd"}', "init_image: got '/etc/passwd', expected an object of png"),
        ('{"init_image": {"path": 5, "sha256": "a"}}', "expected an object of png"),
        ('{"init_image": {"png": "?"}}', "base64 text is damaged"),
        ('{"init_image": {"png": "aGk="}}', "is not a picture"),
        ('{"init_image": {"path": "/dev/zero", "sha256": "a"}}', "is not there"),
        ('{"init_image": {"path": "a\\u0000b", "sha256": "a"}}', "is not there"),
    ],
)  # fmt: skip
def test_invalid_json(text: str, words: str) -> None:
    with pytest.raises((RequestError, PictureError), match=words) as error:
        from_json(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_request_error_names_its_file(tmp_path: Path) -> None:
    for request, words in (
        ({"prompt": 3}, "prompt: got 3, expected a text"),
        ({"steps": 0}, "steps: got 0"),
        ({"loras": [[]]}, "loras: got"),
        ({"init_image": {"path": "/none", "sha256": "0"}}, "init_image: /none is not there"),
        ({"init_image": 3}, "init_image: got '3'"),
    ):
        path = gradina_file(tmp_path, request=request)
        with pytest.raises((RequestError, PictureError)) as error:
            read_picture(path)
        assert str(error.value).startswith(f"picture: {path}: {words}")


def test_request_with_a_missing_picture(tmp_path: Path) -> None:
    record = read_picture(
        gradina_file(tmp_path, request={"init_image": {"path": "/none", "sha256": "0"}}), strict=False
    )
    assert json.loads(to_json(record.request, strict=False))["init_image"] == {"path": "/none"}
    with pytest.raises(PictureError, match="/none does not exist"):
        to_json(record.request)


def test_embedded_bomb_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    import base64

    value = {"png": base64.b64encode(file.getvalue()).decode()}
    with pytest.raises(PictureError, match="5000 x 5000 pixels"):
        read_picture(gradina_file(tmp_path, request={"init_image": value}))


def test_invalid_json_falls_back_to_the_a1111_text(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("gradina", '{"not": "ours"}')
    info.add_text("parameters", NEW)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_picture(tmp_path / "a.png").source == "a1111"
    assert set(read_texts(tmp_path / "a.png")) == {"gradina", "parameters"}


def test_every_field_is_in_the_json() -> None:
    assert set(json.loads(to_json(Request()))) == {field.name for field in fields(Request)}


def test_metadata_imports_no_torch() -> None:
    modules = "sys, gradina.images.metadata, gradina.images.grid"
    code = f"import {modules}\nprint([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", ["Parameters", "Description", "Comment", "Anything"])
def test_a1111_text_under_other_keywords(tmp_path: Path, key: str) -> None:
    record = record_of(tmp_path, {"Title": "a kite", key: A1111})
    assert (record.source, record.request.seed, record.request.negative_prompt) == ("a1111", 77, "blurry")


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_a1111_text_in_xmp(tmp_path: Path, suffix: str) -> None:
    text = f"<dc:description><rdf:Alt><rdf:li>{html.escape(A1111)}</rdf:li></rdf:Alt></dc:description>"
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        write_png(path, {"XML:com.adobe.xmp": text})
    else:
        Image.new("RGB", (64, 64)).save(path, xmp=text.encode())
    record = read_picture(path)
    assert (record.request.prompt, record.request.negative_prompt, record.request.seed) == (
        KITE["prompt"], "blurry", 77,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a1111_text_in_exif_equals_sd_parsers(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", exif=exif)
    parsed, request = ParserManager().parse(tmp_path / f"a{suffix}"), read_picture(tmp_path / f"a{suffix}").request
    assert parsed
    sampler = parsed.samplers[0]
    assert (request.prompt, request.negative_prompt) == (sampler.prompts[0].value, sampler.negative_prompts[0].value)
    assert (str(request.seed), str(request.steps)) == (sampler.parameters["seed"], sampler.parameters["steps"])


def test_precedence_of_texts(tmp_path: Path) -> None:
    both = {"parameters": A1111.replace("a red kite", "a blue kite"), "prompt": comfy(), "workflow": {}}
    assert record_of(tmp_path, both).source == "a1111"
    record = json.dumps({"format": 1, "gradina": "0", "model": None, "request": {"prompt": "ours"}})
    assert record_of(tmp_path, {**FILES["invokeai"], **both, "gradina": record}).request == Request(prompt="ours")
    assert record_of(tmp_path, {"parameters": "{red|blue} kite\nSteps: 4, Sampler: Euler, Seed: 3"}).request.steps == 4
    assert (
        record_of(tmp_path, {"Description": A1111, "Software": "x"} | {"ImageDescription": "x"} | both).source
        == "a1111"
    )
    with pytest.raises(PictureError, match="carries no request"):
        record_of(tmp_path, {"Comment": "Created with GIMP", "prompt": "a cat", "Description": "x", "Software": "GIMP"})
    with pytest.raises(PictureError, match="ComfyUI's workflow without its prompt"):
        record_of(tmp_path, {"workflow": {}})
    with pytest.raises(PictureError, match="InvokeAI's graph without its settings"):
        record_of(tmp_path, {"invokeai_graph": {}})
    with pytest.raises(PictureError, match="NovelAI's marks without its settings"):
        record_of(tmp_path, NOVEL_CHUNKS)
