"""Pictures of any format as a model takes them: upright, opaque, eight bits per channel, of its size."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from gradina.errors import PictureError
from gradina.request_checks import MAX_PIXELS

if TYPE_CHECKING:
    from gradina.request import ImageLike

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
SAVE_OPTIONS: dict[str, dict[str, Any]] = {  # of Pillow, by the suffix of the file
    ".png":  {"format": "PNG"},
    ".jpg":  {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}  # fmt: skip
UNSUPPORTED_SIGNATURES = (  # the first bytes of other files with the suffix of a picture
    (rb"\Z", "empty"),
    (rb".{4}ftyp(hei|hev|mif|msf)", "HEIC"),
    (rb"\xff\x0a|\0\0\0\x0cJXL", "JPEG XL"),
    (rb"8BPS", "PSD"),
    (rb"\s*<(!doctype html|html)", "HTML"),
    (rb"\s*<(svg|\?xml)", "SVG"),
    (rb".{4}ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"version https://git-lfs", "a pointer of Git LFS, to be fetched with `git lfs pull`"),
)
MAX_SOURCE_PIXELS = 120_000_000  # of a picture that is made smaller before use
MAX_ASPECT = 64  # longer side over shorter; beyond it, the ends of a picture are cut off first

# What Pillow's decoders raise for damaged files.
DECODE_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip

_filter_lock = threading.Lock()  # the list of warning filters belongs to the whole process


def _name(source: ImageLike | bytes) -> str:
    if isinstance(source, Image.Image | bytes):
        return "the file" if isinstance(source, bytes) else "the picture"
    return os.fspath(source)


def check_file(path: str | PathLike[str], what: str) -> str:
    """The path of a file; raises PictureError where none exists."""
    if not os.path.isfile(path):
        kind = "is not a file" if os.path.exists(path) else "does not exist"
        raise PictureError(f"{what}: {os.fspath(path)} {kind}; give the path of a picture")
    return os.fspath(path)


@contextmanager
def open_image(source: ImageLike | bytes, what: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The picture with its header read and its size checked, its pixels not yet decoded; raises PictureError."""
    # What Pillow warns of is harmless here or raises PictureError.
    with _filter_lock, warnings.catch_warnings(action="ignore"), _open(source, what, max_pixels) as image:
        name, (width, height) = _name(source), image.size
        if width * height > max_pixels:
            got = f"{width} x {height} pixels, {width * height / 1e6:.1f} megapixels"
            raise PictureError(f"{what}: {name} is {got} (at most {max_pixels / 1e6:.1f}); make it smaller first")
        if not width or not height:
            raise PictureError(f"{what}: {name} is {width} x {height} pixels; give a picture with pixels in it")
        yield image


def _open(source: ImageLike | bytes, what: str, max_pixels: int) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    path = _name(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else check_file(source, what)
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        limit = f"at most {max_pixels / 1e6:.1f}"
        raise PictureError(f"{what}: {path} has far too many megapixels ({limit}); make it smaller first") from None
    except PermissionError as error:
        raise PictureError(f"{what}: {path} may not be read; change its permissions") from error
    except UnidentifiedImageError:
        raise PictureError(
            f"{what}: {path} is not a picture ({_signature(source)}expected {', '.join(FORMATS)})"
        ) from None
    except DECODE_ERRORS as error:
        raise PictureError(f"{what}: {path} is damaged or truncated ({error}); give another file") from error
    if image.format not in FORMATS:
        image.close()
        raise PictureError(f"{what}: {path} is {image.format}, expected {', '.join(FORMATS)}; convert it first")
    return image


def _signature(source: str | PathLike[str] | bytes) -> str:
    """What a file is by its first bytes, for a message; "" where that is unknown."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        data = file.read(64)
    for mark, kind in UNSUPPORTED_SIGNATURES:
        if re.match(mark, data, re.IGNORECASE | re.DOTALL):
            return f"it is {kind}; "
    return ""


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey scaled to eight bits; any other picture as it is."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    highest = 65535.0
    if image.mode in ("I", "F"):
        peak = float(image.getextrema()[1])  # type: ignore[arg-type]
        ranges = (1.0,) if image.mode == "F" else ()
        highest = next((top for top in (*ranges, 255.0, 65535.0) if peak <= top), peak)
    return image.convert("F").point(lambda value: value * (255.0 / highest) + 0.5).convert("L")


def is_animated(source: ImageLike | bytes, what: str = "picture") -> bool:
    """Whether a picture is animated or has several pages; the preview in an MPO file of a phone does not count.

    Raises PictureError as `open_picture` does.
    """
    with open_image(source, what, MAX_SOURCE_PIXELS) as image:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def _flatten(image: Image.Image, mode: str, background: str) -> Image.Image:
    """Upright, in `mode`, composited over `background`."""
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, background), over)
    flat = image.convert("RGB").convert(mode)  # every mode converts to RGB
    flat.info = {}
    return flat


def _read(source: ImageLike | bytes, what: str, convert: Callable[[Image.Image], T], max_pixels: int = MAX_PIXELS) -> T:
    with open_image(source, what, max_pixels) as image:
        try:
            return convert(image)
        except DECODE_ERRORS as error:
            reason = f"{_name(source)} is damaged or truncated ({error}); give another file"
            raise PictureError(f"{what}: {reason}") from error


def open_picture(source: ImageLike | bytes, what: str = "init_image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as opaque RGB, from a path, the bytes of a file, or a picture in memory, which is not changed.

    Applies the EXIF orientation, composites transparency over white, and scales grey of more than eight bits. Raises
    PictureError, which begins with `what`: no such file, no picture, damaged, or larger than `max_pixels`.
    """
    return _read(source, what, partial(_flatten, mode="RGB", background="white"), max_pixels)


def open_mask(source: ImageLike | bytes, what: str = "mask_image") -> Image.Image:
    """The mask as grey (L), white where the picture is drawn anew; transparent pixels are black, so they are kept.

    Raises PictureError as `open_picture` does.
    """
    return open_mask_and_holes(source, what)[0]


def open_mask_and_holes(source: ImageLike | bytes, what: str = "mask_image") -> tuple[Image.Image, bool]:
    """The mask as `open_mask` gives it, and whether it is really a picture with holes, as some programs mark masks."""
    return _read(source, what, lambda image: (_flatten(image, "L", "black"), _has_holes(image)))


def _has_holes(image: Image.Image) -> bool:
    """Whether a picture has transparent holes, and around them more than the black and white of a mask."""
    if not image.has_transparency_data:
        return False
    small = image.convert("RGBA").resize((64, 64), Image.Resampling.NEAREST)
    pixels = list(zip(small.getchannel("A").tobytes(), small.convert("L").tobytes(), strict=True))
    opaque = [grey for alpha, grey in pixels if alpha >= 128]
    return 0 < len(opaque) < len(pixels) and sum(32 <= grey < 224 for grey in opaque) * 2 > len(opaque)


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at exactly `width` x `height` pixels, by Lanczos and without cropping, as in diffusers."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def resize_and_center_crop(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The shorter side resized to `side` pixels, then a square center crop, as transformers preprocesses for CLIP.

    Of a picture more than 64 times as long as wide, the ends are cut off before.
    """
    short = min(image.size)
    if max(image.size) > MAX_ASPECT * short:
        image = _center_crop(image, *(min(length, MAX_ASPECT * short) for length in image.size))
    width, height = (int(side * length / short) for length in image.size)
    return _center_crop(image.resize((width, height), resample), side, side)


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The center of a picture, of that size."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def overlay(known: Image.Image, drawn: Image.Image, mask: Image.Image, blur: float | None = None) -> Image.Image:
    """`drawn` where the mask is white, `known` where it is black, blended inside the border of the white area.

    All of one size; `blur` is the width of the blend in pixels, by default a 256th of the longer side: 2 of 512, so
    that a stroke of 8 pixels, which is one of the latents, is still drawn.
    """
    radius = max(mask.size) / 256 if blur is None else blur
    soft = mask.filter(ImageFilter.GaussianBlur(radius)).point(lambda value: max(0, 2 * value - 255))
    return Image.composite(drawn, known, ImageChops.darker(soft, mask))
