"""A finished picture, and its file, which carries the request."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradina.errors import RequestError
from gradina.files import atomic_write
from gradina.images.infotext import write_parameters
from gradina.images.metadata import COMMENT, DESCRIPTION, EXIF, FORMAT, IMAGES, request_to_dict, version
from gradina.images.open import SAVE_OPTIONS, resize
from gradina.request import Request
from gradina.request_checks import choice

log = logging.getLogger(__name__)

MAX_EXIF_BYTES = 65_500  # of the one EXIF segment of a JPEG


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
        suffix = choice("suffix of the picture's name", Path(path).suffix.lower(), tuple(SAVE_OPTIONS))
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
                    raise RequestError(
                        f"prompt: too long for a JPEG ({len(exif)} bytes, at most {MAX_EXIF_BYTES}); save a PNG"
                    )
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
    exif.get_ifd(EXIF)[COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    if record is not None:
        exif[DESCRIPTION] = record
    return exif.tobytes()
