"""A finished picture, and its file, which carries its Request: as A1111 text, and as gradina's JSON.

PNG: the chunks `parameters` and `gradina`. JPEG and WebP: the EXIF fields UserComment and ImageDescription.
"""

from __future__ import annotations

import base64
import functools
import importlib.metadata
import io
import json
import logging
import os
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from gradina.errors import PictureError, RequestError
from gradina.files import atomic_write, file_sha256
from gradina.images.infotext import write_parameters
from gradina.images.open import SAVE_OPTIONS, check_file, open_mask, open_picture, resize
from gradina.request import Request
from gradina.request_checks import check_choice

log = logging.getLogger(__name__)

FORMAT = 1  # of gradina's JSON
IMAGES = {"init_image": open_picture, "mask_image": open_mask}
MAX_EXIF_BYTES = 65_500  # of the one EXIF segment of a JPEG


@functools.cache
def version() -> str:
    return importlib.metadata.version("gradina")


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture with its request and the model that drew it."""

    image: Image.Image
    seed: int
    request: Request
    model: dict[str, str] | None = None  # name, hash, source, dtype, engine

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the picture with its request and model, atomically: PNG, lossless WebP, or JPEG (quality 95).

        A JPEG of more than 64 KiB of metadata keeps the A1111 text alone, with a warning. Raises RequestError for
        another suffix, and DiskError.
        """
        suffix = check_choice("suffix of the picture's name", Path(path).suffix.lower(), tuple(SAVE_OPTIONS))
        text, record = _metadata(self)
        if suffix == ".png":
            chunks = PngInfo()
            chunks.add_text("parameters", text)
            chunks.add_text("gradina", record)
            metadata: dict[str, Any] = {"pnginfo": chunks}
        else:
            exif = _exif(text, record)
            if suffix != ".webp" and len(exif) > MAX_EXIF_BYTES:
                log.warning(
                    "%s: the request is too large for a JPEG, which now holds the A1111 text alone; use PNG", path
                )
                exif = _exif(text, None)
                if len(exif) > MAX_EXIF_BYTES:
                    size = f"{len(exif)} bytes, at most {MAX_EXIF_BYTES}"
                    raise RequestError(f"prompt: too long for a JPEG ({size}); save a PNG")
            metadata = {"exif": exif}
        with atomic_write(path) as file:
            self.image.convert("RGB").save(file, **SAVE_OPTIONS[suffix], **metadata)


def _metadata(picture: Picture) -> tuple[str, str]:
    """The A1111 text and the JSON of a picture; init and mask in memory are embedded no larger than they were used."""
    changed: dict[str, Any] = {"seed": picture.seed}
    width, height = picture.image.size
    for name, open_ in IMAGES.items():
        image = getattr(picture.request, name)
        if isinstance(image, Image.Image) and image.width * image.height > width * height:
            changed[name] = resize(open_(image, name), width, height)
    request = replace(picture.request, **changed)
    text = write_parameters(request, picture.model, version()).replace("\0", " ")
    record = {"format": FORMAT, "gradina": version(), "model": picture.model, "request": request_to_dict(request)}
    return text.encode("utf-8", "replace").decode(), json.dumps(record)


def _exif(text: str, record: str | None) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    if record is not None:
        exif[ExifTags.Base.ImageDescription] = record
    return exif.tobytes()


# A request as JSON


def _image_to_dict(name: str, value: Any, strict: bool = True) -> dict[str, str] | None:
    """A file as its path and hash; a picture in memory as the PNG of what the model reads."""
    if value is None:
        return None
    if not isinstance(value, Image.Image):
        if not strict and not os.path.isfile(value):
            return {"path": str(value)}
        return {"path": str(value), "sha256": file_sha256(check_file(value, name))}
    file = io.BytesIO()
    IMAGES[name](value, name).save(file, "PNG")
    return {"png": base64.b64encode(file.getvalue()).decode()}


def image_from_dict(name: str, value: Any, folder: str | PathLike[str] | None) -> Any:
    """The picture that `_image_to_dict` described; a relative path is also tried in `folder`."""
    keys = isinstance(value, dict) and all(isinstance(text, str) for text in value.values()) and set(value)
    if value is None:
        return None
    if keys == {"png"}:
        try:
            data = base64.b64decode(value["png"], validate=True)
        except ValueError as error:
            damage = f"its base64 text is damaged ({error})"
            raise PictureError(f"{name}: {damage}; take the picture from its source") from None
        return IMAGES[name](data, name)
    if keys != {"path", "sha256"}:
        expected = "expected an object of png (base64), or of path and sha256"
        raise RequestError(f"{name}: got {str(value)[:80]!r}, {expected}")
    given = Path(value["path"])
    paths = [given] if folder is None else [given, Path(folder, given), Path(folder, given.name)]
    existing = [path for path in paths if path.is_file()]
    for path in existing:
        if file_sha256(path) == value["sha256"]:
            return str(path)
    what = f"{existing[0]} has changed since then" if existing else f"{given} is not there"
    raise PictureError(f"{name}: {what}; put the one with sha256 {value['sha256'][:12]}... back, or name another")


def request_to_dict(request: Request, strict: bool = True) -> dict[str, Any]:
    values = {field.name: getattr(request, field.name) for field in fields(Request)}
    return values | {name: _image_to_dict(name, values[name], strict) for name in IMAGES}


def to_json(request: Request, strict: bool = True) -> str:
    """The request as a JSON object of all its fields, in ASCII.

    A picture in memory is embedded as a base64 PNG, a path is written with the sha256 of its file. Raises PictureError
    for a file that cannot be read; unless `strict`, the path of a missing one is written alone.
    """
    return json.dumps(request_to_dict(request, strict))


def from_json(text: str, folder: str | PathLike[str] | None = None) -> Request:
    """The request that `to_json` wrote; paths are tried as they are, then in `folder`.

    Raises RequestError for invalid JSON or an unknown field, PictureError for a picture that is missing or has changed.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"request: this is not JSON ({error}); expected an object of a request's fields") from None
    if not isinstance(values, dict):
        raise RequestError(f"request: got {str(values)[:80]!r}, expected a JSON object of its fields")
    for name in values:
        check_choice("request", name, tuple(field.name for field in fields(Request)))
    return Request(**{k: image_from_dict(k, v, folder) if k in IMAGES else v for k, v in values.items()})
