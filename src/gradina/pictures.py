"""Pictures from anywhere, made into what a model can start from: upright, opaque, eight bits, of its size."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from gradina.errors import PictureError

if TYPE_CHECKING:
    from gradina.request import ImageLike

MAX_PIXELS = 16_800_000
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")

_quiet = threading.Lock()  # the list of warning filters belongs to the whole process


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps Pillow's warnings to itself: what they speak of is either harmless here or refused in our own words."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name(source: ImageLike) -> str:
    return "the picture" if isinstance(source, Image.Image) else os.fspath(source)


@contextmanager
def _opened(source: ImageLike, what: str) -> Iterator[Image.Image]:
    """The picture with its header read and its size admitted, its pixels not yet decoded."""
    if isinstance(source, Image.Image):
        _admit_size(source, what, _name(source))
        yield source
        return
    path = os.fspath(source)
    if not os.path.isfile(path):
        kind = "is no file" if os.path.exists(path) else "does not exist"
        raise PictureError(f"{what}: {path} {kind}; give the path of a picture")
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        limit = f"at most {MAX_PIXELS / 1e6:.1f}"
        raise PictureError(f"{what}: {path} has far too many megapixels ({limit}); make it smaller first") from None
    except PermissionError as error:
        raise PictureError(f"{what}: {path} may not be read; change its permissions") from error
    except UnidentifiedImageError:
        raise PictureError(f"{what}: {path} is no picture (expected {', '.join(FORMATS)})") from None
    except Exception as error:
        raise PictureError(f"{what}: {path} is damaged or truncated ({error}); give another file") from error
    with image:
        if image.format not in FORMATS:
            raise PictureError(f"{what}: {path} is {image.format}, expected {', '.join(FORMATS)}; convert it first")
        _admit_size(image, what, path)
        yield image


def _admit_size(image: Image.Image, what: str, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        got = f"{width} x {height} pixels, {width * height / 1e6:.1f} megapixels"
        raise PictureError(f"{what}: {name} is {got} (at most {MAX_PIXELS / 1e6:.1f}); make it smaller first")
    if not width or not height:
        raise PictureError(f"{what}: {name} is {width} x {height} pixels; give a picture with pixels in it")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey as eight bits, its full range kept; anything else as it is."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    highest = 65535.0
    if image.mode in ("I", "F"):
        peak = float(image.getextrema()[1])  # type: ignore[arg-type]
        fits = (1.0,) if image.mode == "F" else ()
        highest = next((top for top in (*fits, 255.0, 65535.0) if peak <= top), peak)
    return image.convert("F").point(lambda value: value * (255.0 / highest) + 0.5).convert("L")


def _flat(image: Image.Image, mode: str, background: str) -> Image.Image:
    """Upright, in `mode`, with what is transparent laid over `background`."""
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, background), over)
    flat = image.convert("RGB").convert(mode)  # by way of RGB, which every mode can become
    flat.info = {}
    return flat


def _read(source: ImageLike, what: str, mode: str, background: str) -> Image.Image:
    with _without_warnings(), _opened(source, what) as image:
        try:
            return _flat(image, mode, background)
        except Exception as error:  # a damaged file can break any of Pillow's decoders in any way
            reason = f"{_name(source)} is damaged or truncated ({error}); give another file"
            raise PictureError(f"{what}: {reason}") from error


def open_picture(source: ImageLike, what: str = "init_image") -> Image.Image:
    """The picture as upright opaque RGB, from a path or from a picture in memory, which stays as it is.

    Its EXIF orientation is applied, transparency is laid over white, and grey of more than eight bits keeps its
    full range. Raises PictureError, which begins with `what`: no such file, no picture, damaged, over 16.8 megapixels.
    """
    return _read(source, what, "RGB", "white")


def open_mask(source: ImageLike, what: str = "mask_image") -> Image.Image:
    """The mask as grey (L), white where the picture is drawn anew; what is transparent is black, so it is kept.

    Raises PictureError as `open_picture` does.
    """
    return _read(source, what, "L", "black")


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at exactly `width` x `height` pixels: Lanczos, without cropping, as diffusers resizes."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)
