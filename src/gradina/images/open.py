"""Pictures from anywhere, made into what a model can start from: upright, opaque, eight bits, of its size."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from gradina.errors import PictureError
from gradina.request import MAX_PIXELS

if TYPE_CHECKING:
    from gradina.request import ImageLike

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
SAVED: dict[str, dict[str, Any]] = {  # as what, and how, a picture is written, by the suffix of its name
    ".png":  {"format": "PNG"},
    ".jpg":  {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}  # fmt: skip
SUFFIXES = (  # of what is read
    ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
UNREAD = (  # of what is a picture, and of no use here
    ".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw",
    ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".mrw", ".rwl",
)  # fmt: skip
OTHERS = (  # what files begin with that are called pictures, and are of no use here
    (rb".{4}ftyp(hei|hev|mif|msf)", "HEIC"),
    (rb"\xff\x0a|\0\0\0\x0cJXL", "JPEG XL"),
    (rb"8BPS", "PSD"),
    (rb"\s*<(!doctype html|html)", "HTML"),
    (rb"\s*<(svg|\?xml)", "SVG"),
    (rb".{4}ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"version https://git-lfs", "a pointer of Git LFS, to be fetched with `git lfs pull`"),
)
UNREAD_ADVICE = "convert them to PNG or JPEG"
PRIVATE = {  # folders in which systems keep thumbnails and what was removed, in small letters
    "@eadir", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip
LARGEST = 120_000_000  # pixels of a picture that is only looked at, and made small first
LONGEST = 64  # times as long as wide, beyond which only the middle of a picture is looked at

# A damaged file can break Pillow's decoders in any of these ways.
DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip

_quiet = threading.Lock()  # the list of warning filters belongs to the whole process


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps Pillow's warnings to itself: what they speak of is either harmless here or refused in our own words."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name(source: ImageLike | bytes) -> str:
    if isinstance(source, Image.Image | bytes):
        return "the file" if isinstance(source, bytes) else "the picture"
    return os.fspath(source)


def admit_file(path: str | PathLike[str], what: str) -> str:
    """The path, if a file is there; raises PictureError if none is, or something else."""
    if not os.path.isfile(path):
        kind = "is no file" if os.path.exists(path) else "does not exist"
        raise PictureError(f"{what}: {os.fspath(path)} {kind}; give the path of a picture")
    return os.fspath(path)


@contextmanager
def opened(source: ImageLike | bytes, what: str, most: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The picture with its header read and its size admitted, its pixels not yet decoded; raises PictureError."""
    with _without_warnings():
        if isinstance(source, Image.Image):
            _admit_size(source, what, _name(source), most)
            yield source
            return
        with _open(source, what, most) as image:
            _admit_size(image, what, _name(source), most)
            yield image


def _open(source: str | PathLike[str] | bytes, what: str, most: int) -> Image.Image:
    path = _name(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else admit_file(source, what)
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        limit = f"at most {most / 1e6:.1f}"
        raise PictureError(f"{what}: {path} has far too many megapixels ({limit}); make it smaller first") from None
    except PermissionError as error:
        raise PictureError(f"{what}: {path} may not be read; change its permissions") from error
    except UnidentifiedImageError:
        kind = _kind(source[:64] if isinstance(source, bytes) else _begin(source))
        raise PictureError(f"{what}: {path} is no picture ({kind}expected {', '.join(FORMATS)})") from None
    except DAMAGE as error:
        raise PictureError(f"{what}: {path} is damaged or truncated ({error}); give another file") from error
    if image.format not in FORMATS:
        image.close()
        raise PictureError(f"{what}: {path} is {image.format}, expected {', '.join(FORMATS)}; convert it first")
    return image


def _begin(path: str | PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _kind(data: bytes) -> str:
    """What a file is instead of a picture that is read, by its first bytes, for a message; "" where that is unknown."""
    if not data:
        return "it is empty; "
    return next((f"it is {kind}; " for mark, kind in OTHERS if re.match(mark, data, re.IGNORECASE | re.DOTALL)), "")


def _admit_size(image: Image.Image, what: str, name: str, most: int) -> None:
    width, height = image.size
    if width * height > most:
        got = f"{width} x {height} pixels, {width * height / 1e6:.1f} megapixels"
        raise PictureError(f"{what}: {name} is {got} (at most {most / 1e6:.1f}); make it smaller first")
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


def moving(source: ImageLike | bytes, what: str = "picture") -> bool:
    """Whether a picture is animated, or has several pages; a second one for other screens, as telephones add, is not.

    Raises PictureError as `open_picture` does.
    """
    with opened(source, what, LARGEST) as image:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def _flat(image: Image.Image, mode: str, background: str) -> Image.Image:
    """Upright, in `mode`, with what is transparent laid over `background`."""
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, background), over)
    flat = image.convert("RGB").convert(mode)  # by way of RGB, which every mode can become
    flat.info = {}
    return flat


def _read(source: ImageLike | bytes, what: str, mode: str, background: str, most: int = MAX_PIXELS) -> Image.Image:
    with opened(source, what, most) as image:
        try:
            return _flat(image, mode, background)
        except DAMAGE as error:
            reason = f"{_name(source)} is damaged or truncated ({error}); give another file"
            raise PictureError(f"{what}: {reason}") from error


def open_picture(source: ImageLike | bytes, what: str = "init_image", most: int = MAX_PIXELS) -> Image.Image:
    """The picture as upright opaque RGB, from a path, a file's bytes, or a picture in memory, which stays as it is.

    Its EXIF orientation is applied, transparency is laid over white, and grey of more than eight bits keeps its
    full range. Raises PictureError, which begins with `what`: no such file, no picture, damaged, over `most` pixels.
    """
    return _read(source, what, "RGB", "white", most)


def open_mask(source: ImageLike | bytes, what: str = "mask_image") -> Image.Image:
    """The mask as grey (L), white where the picture is drawn anew; what is transparent is black, so it is kept.

    Raises PictureError as `open_picture` does.
    """
    return _read(source, what, "L", "black")


def has_holes(source: ImageLike | bytes, what: str = "mask_image") -> bool:
    """Whether a mask is a picture with transparent places, as some programs mark so what is drawn anew.

    What is opaque in it is then not black and white, as strokes of a mask are. Raises PictureError as `open_picture`.
    """
    with opened(source, what) as image:
        if not image.has_transparency_data:
            return False
        small = image.convert("RGBA").resize((64, 64), Image.Resampling.NEAREST)
    pixels = list(zip(small.getchannel("A").tobytes(), small.convert("L").tobytes(), strict=True))
    opaque = [grey for alpha, grey in pixels if alpha >= 128]
    return 0 < len(opaque) < len(pixels) and sum(32 <= grey < 224 for grey in opaque) * 2 > len(opaque)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at exactly `width` x `height` pixels: Lanczos, without cropping, as diffusers resizes."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def middle(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The shortest side resized to `side` pixels, and of the rest the middle: as transformers shows pictures to CLIP.

    Of a picture more than 64 times as long as wide, the ends are cut off before that.
    """
    short = min(image.size)
    if max(image.size) > LONGEST * short:
        image = _cut(image, *(min(length, LONGEST * short) for length in image.size))
    width, height = (int(side * length / short) for length in image.size)
    return _cut(image.resize((width, height), resample), side, side)


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture, of that size."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def visible(parts: Iterable[str]) -> bool:
    """Whether none of the names of a path is hidden, or of a folder that systems keep to themselves."""
    return not any((name.startswith(".") and name not in (".", "..")) or name.lower() in PRIVATE for name in parts)


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and those below it that are visible, in order; links to folders elsewhere are followed.

    A note names a folder that cannot be read.
    """

    def untold(error: OSError) -> None:
        log.warning("%s: cannot be read (%s), and is left out", error.filename, error.strerror)

    found, root = [], os.path.realpath(folder)
    seen = {root}
    for place, below, names in os.walk(folder, followlinks=True, onerror=untold):
        below[:] = sorted(name for name in below if visible([name]) and _elsewhere(Path(place, name), root, seen))
        found += [Path(place, name) for name in sorted(names) if visible([name])]
    return found


def _elsewhere(path: Path, root: str, seen: set[str]) -> bool:
    """Whether a folder is to be entered: no link, or one that leads beside `root`, to where nothing has been `seen`."""
    true = os.path.realpath(path)
    around = Path(true).is_relative_to(root) or Path(root).is_relative_to(true)
    if true in seen or (path.is_symlink() and around):
        return False
    seen.add(true)
    return True


def pictures_in(folder: Path) -> list[Path]:
    """The visible files in a folder and those below it that are named as pictures are, in order.

    A note counts those in formats that are not read, such as HEIC, and links to nothing; raises PictureError where
    there are none but in such formats.
    """
    files = files_in(folder)
    named = [path for path in files if path.suffix.lower() in SUFFIXES]
    found = [path for path in named if path.is_file()]
    gone = [str(path.relative_to(folder)) for path in named if path.is_symlink() and not path.exists()]
    if gone:
        names = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
        log.warning("%s: %d links to pictures lead to nothing (%s), and are left out", folder, len(gone), names)
    unread = [path for path in files if path.suffix.lower() in UNREAD and path.is_file()]
    if unread:
        names = ", ".join(str(path.relative_to(folder)) for path in unread[:3]) + (", ..." if len(unread) > 3 else "")
        kinds = ", ".join(sorted({path.suffix.lower() for path in unread}))
        said = f"{folder}: {len(unread)} pictures are in formats that are not read ({kinds}: {names})"
        if not found:
            raise PictureError(f"{said}; {UNREAD_ADVICE}")
        log.warning("%s, and left out; %s", said, UNREAD_ADVICE)
    return found


def overlay(known: Image.Image, drawn: Image.Image, mask: Image.Image, blur: float | None = None) -> Image.Image:
    """`drawn` where the mask is white, `known` untouched where it is black; they blend inside the white border.

    All three of one size; `blur` in pixels is the width of the blend, by default a 256th of the longer side: two of
    512, so that a stroke of eight, a place of the latents, is still drawn.
    """
    radius = max(mask.size) / 256 if blur is None else blur
    soft = mask.filter(ImageFilter.GaussianBlur(radius)).point(lambda value: max(0, 2 * value - 255))
    return Image.composite(drawn, known, ImageChops.darker(soft, mask))
