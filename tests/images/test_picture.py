"""Saved pictures: pixels and request round-trip through every format, and what cannot be saved is named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gradina.errors import DiskError, RequestError
from gradina.images.metadata import read_picture
from gradina.images.open import SAVE_OPTIONS, open_picture
from gradina.images.picture import Picture
from gradina.request import Defaults, Request

from .conftest import requests

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


MODEL = {"name": "digits, small: v1", "hash": "0123abcd"}


def picture(request: Request, model: dict[str, str] | None = MODEL) -> Picture:
    request = request.resolved(Defaults(width=16, height=8))
    return Picture(Image.effect_noise((16, 8), 60).convert("RGB"), request.seed or 0, request, model)


ANY = requests(st.text(st.characters(), max_size=60))  # lone surrogates, control characters and all


@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
@given(request_=ANY)
@QUICK
def test_file_round_trip(tmp_path: Path, suffix: str, request_: Request) -> None:
    path = tmp_path / f"a{suffix}"
    picture(request_).save(path)
    record = read_picture(path)
    assert record.request == request_
    assert record.model == MODEL
    assert record.source == "gradina"
    assert record.notes == ()
    with Image.open(path) as image:
        image.load()
        assert image.size == (16, 8)


@pytest.mark.parametrize("suffix", SAVE_OPTIONS)
def test_text_is_where_other_programs_read_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture(Request(prompt="Кот, 猫 🐈", seed=3)).save(path)
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
def test_lossless_formats_keep_pixels(tmp_path: Path, suffix: str) -> None:
    one = picture(Request(prompt="x"))
    one.save(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.convert("RGB").tobytes() == one.image.tobytes()


def test_embedded_picture_is_no_larger_than_used(tmp_path: Path) -> None:
    picture(Request(init_image=Image.effect_noise((640, 320), 80))).save(tmp_path / "a.png")
    got = read_picture(tmp_path / "a.png").request.init_image
    assert isinstance(got, Image.Image)
    assert got.size == (16, 8)
    small = Image.new("RGB", (5, 3), (1, 2, 3))
    picture(Request(init_image=small)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").request.init_image == small


def test_jpeg_without_room_keeps_the_a1111_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = Image.effect_noise((256, 256), 90)
    request = Request(prompt="x", init_image=noise, seed=1).resolved(Defaults())
    with caplog.at_level(logging.WARNING):
        Picture(noise, 1, request).save(tmp_path / "a.jpg")
    assert "too large for a JPEG" in caplog.text
    assert read_picture(tmp_path / "a.jpg").source == "a1111"
    Picture(noise, 1, request).save(tmp_path / "a.webp")
    assert read_picture(tmp_path / "a.webp").request.init_image == open_picture(noise)
    with pytest.raises(RequestError, match="too long for a JPEG"):
        picture(Request(prompt="x" * 40_000)).save(tmp_path / "b.jpg")


def test_unsavable_pictures(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no '\.bmp'.*\.png, \.jpg, \.jpeg, \.webp"):
        picture(Request()).save(tmp_path / "a.bmp")
    with pytest.raises(RequestError, match=r"draws 3 pictures; describe one, request\.alone\(i\)"):
        picture(Request(images=3)).save(tmp_path / "a.png")
    with pytest.raises(DiskError, match="make the folder first"):
        picture(Request()).save(tmp_path / "none" / "a.png")
    assert not list(tmp_path.iterdir())
