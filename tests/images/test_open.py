"""Opened pictures: every mode and format becomes RGB or grey, and an invalid file is one line."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradina.errors import PictureError
from gradina.images.folder import SUFFIXES
from gradina.images.open import FORMATS, MAX_PIXELS, open_mask, open_picture, overlay, resize, resize_and_center_crop

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bare_png(width: int, height: int) -> bytes:
    """A PNG whose header announces a size, with no pixels behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_path_and_image_give_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    for source in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        got = open_picture(source)
        assert got.mode == "RGB"
        assert np.array_equal(np.asarray(got), pixels)
    assert open_picture(image) is not image


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), BLACK)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    image.save(tmp_path / "a.png", exif=exif)
    got = open_picture(tmp_path / "a.png")
    assert got.size == (2, 4)
    assert got.getpixel((1, 0)) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "P"])
def test_transparency_is_composited(mode: str, tmp_path: Path) -> None:
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.info["transparency"] = 0
        image.save(tmp_path / "p.png", transparency=b"\x00")
        source: Any = tmp_path / "p.png"
    else:
        source = Image.new("RGBA", (2, 1), (255, 0, 0, 0)).convert(mode)
    assert open_picture(source).getpixel((0, 0)) == WHITE
    assert open_mask(source).getpixel((0, 0)) == 0


def test_half_transparency_is_blended() -> None:
    assert open_picture(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize(
    ("mode", "dtype", "top"),
    [
        ("I;16", np.uint16, 65535),
        ("I", np.int32, 65535),
        ("I", np.int32, 255),
        ("F", np.float32, 1.0),
        ("F", np.float32, 255),
    ],
)
def test_deep_grey_keeps_its_range(mode: str, dtype: Any, top: float) -> None:
    image = Image.fromarray(np.array([[0, top / 2, top]], dtype))
    assert image.mode == mode
    grey = [image_pixel[0] for image_pixel in (open_picture(image).getpixel((x, 0)) for x in range(3))]  # type: ignore[index]
    assert grey[0] == 0
    assert abs(grey[1] - 127.5) <= 1
    assert grey[2] == 255


def test_16_bit_files(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        assert np.asarray(open_mask(tmp_path / name)).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "I;16B"])
def test_every_mode_becomes_rgb_and_grey(mode: str) -> None:
    assert open_picture(Image.new(mode, (3, 2))).mode == "RGB"
    assert open_mask(Image.new(mode, (3, 2))).mode == "L"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), RED).save(tmp_path / f"a.{suffix}")
    r, g, b = open_picture(tmp_path / f"a.{suffix}").getpixel((3, 3))  # type: ignore[misc]
    assert r > 250
    assert g < 5
    assert b < 5


def broken(tmp_path: Path) -> dict[str, tuple[Callable[[], object], str]]:
    """What a user may hand in, and words of the one line that it gets."""
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = Image.effect_noise((64, 64), 50)
    for suffix in ("png", "jpg", "webp", "gif", "tiff"):
        noise.save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    files = {
        "none.png": "does not exist", "": "is not a file", "words.png": "is not a picture",
        "empty.png": "is not a picture",
        "half.png": "damaged", "half.jpg": "damaged", "half.webp": "damaged|not a picture", "half.gif": "damaged",
        "half.tiff": "damaged|not a picture", "page.eps": "is EPS, expected PNG",
    }  # fmt: skip
    for name, size in (("large", (5000, 5000)), ("bomb", (12000, 12000)), ("worse", (60000, 60000))):
        (tmp_path / f"{name}.png").write_bytes(bare_png(*size))
    files |= {"large.png": r"5000 x 5000 pixels, 25\.0 megapixels \(at most 16\.8\)", "bomb.png": "144.0 mega",
              "worse.png": "far too many megapixels"}  # fmt: skip
    return {name: (lambda path=tmp_path / name: open_picture(path), words) for name, words in files.items()}  # type: ignore[misc]


def test_unusable_file_is_one_line(tmp_path: Path) -> None:
    for name, (attempt, words) in broken(tmp_path).items():
        with warnings.catch_warnings(record=True) as caught, pytest.raises(PictureError, match=words) as error:
            attempt()
        assert not caught, name
        assert str(error.value).startswith("init_image: ")
        assert "\n" not in str(error.value)


def test_size_limit_is_inclusive() -> None:
    assert MAX_PIXELS >= 4096 * 4096
    with pytest.raises(PictureError, match=r"mask_image: the picture is 4200 x 4100"):
        open_mask(Image.new("1", (4200, 4100)))
    large = Image.new("1", (4200, 4100))
    assert open_picture(large, max_pixels=4200 * 4100).size == large.size
    with pytest.raises(PictureError, match=r"17\.2 megapixels \(at most 17\.0\)"):
        open_picture(large, max_pixels=17_000_000)
    with pytest.raises(PictureError, match="0 x 5"):
        open_picture(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "it is empty; "),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC; "),
        (b"\0\0\0\x18ftypisom", "it is a video; "),
        (b"<!DOCTYPE html><html>", "it is HTML; "),
        (b"<?xml version='1.0'?><svg/>", "it is SVG; "),
        (b"\xff\x0a" + bytes(9), "it is JPEG XL; "),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS, "),
        (b"anything", ""),
    ],
)
def test_signature_of_other_files_is_named(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    for source, name in ((tmp_path / "a.jpg", tmp_path / "a.jpg"), (data, "the file")):
        with pytest.raises(PictureError) as error:
            open_picture(source)
        assert str(error.value).startswith(f"init_image: {name} is not a picture ({kind}")


def test_closed_image_is_one_line(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(PictureError, match="the picture is damaged"):
        open_picture(image)


def test_resize_equals_diffusers() -> None:
    image = Image.effect_noise((50, 40), 90)
    assert resize(image, 50, 40) is image
    assert resize(image, 32, 64).size == (32, 64)
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(do_convert_rgb=False)
    assert resize(image, 32, 64).tobytes() == processor.resize(image, 64, 32).tobytes()


@pytest.mark.parametrize("size", [(24, 24), (61, 45), (30, 200), (7, 9), (333, 100)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_center_crop_equals_transformers(size: tuple[int, int], resample: Image.Resampling) -> None:
    processor = pytest.importorskip("transformers").CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size=24, resample=resample, do_rescale=False, do_normalize=False
    )
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    cropped = np.asarray(resize_and_center_crop(Image.fromarray(noise), 24, resample))
    assert np.array_equal(cropped.transpose(2, 0, 1), processor(Image.fromarray(noise)).pixel_values[0])


def test_ends_of_a_very_long_picture_are_cut_off() -> None:
    long = Image.new("RGB", (100_001, 1), RED)
    long.putpixel((50_000, 0), WHITE)
    small = resize_and_center_crop(long, 8, Image.Resampling.NEAREST)
    assert small.size == (8, 8)
    assert small.getpixel((5, 3)) == WHITE
    assert (
        resize_and_center_crop(long.transpose(Image.Transpose.ROTATE_90), 8, Image.Resampling.NEAREST).getpixel((3, 5))
        == WHITE
    )


def test_suffixes_match_the_formats() -> None:
    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} | {"MPO"} == set(FORMATS)


def test_overlay_blends_within_the_border() -> None:
    black, white, mask = (Image.new("L", (64, 64), value) for value in (0, 255, 0))
    mask.paste(255, (20, 13, 51, 43))
    blended = np.asarray(overlay(black, white, mask, blur=3))
    assert blended[np.asarray(mask) == 0].max() == 0
    row = blended[28, 20:36]
    assert (np.diff(row.astype(int)) >= 0).all()
    assert row[0] < 60
    assert row[-1] == 255
    assert (np.asarray(overlay(black, white, white)) == 255).all()
    assert (np.asarray(overlay(black, white, black)) == 0).all()


def test_overlay_draws_a_stroke_of_one_latent_pixel() -> None:
    black, white, mask = (Image.new("L", (512, 512), value) for value in (0, 255, 0))
    mask.paste(255, (200, 0, 208, 512))
    assert np.asarray(overlay(black, white, mask))[256, 203] > 0.85 * 255
