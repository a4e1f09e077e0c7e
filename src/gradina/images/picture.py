"""A finished picture, and its file, which carries its request."""

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
from gradina.images.metadata import COMMENT, DESCRIPTION, EXIF, FORMAT, IMAGES, request_out, version
from gradina.images.open import SAVE_OPTIONS, resize
from gradina.request import Request, choice

log = logging.getLogger(__name__)

EXIF_BYTES = 65_500  # that fit into a JPEG's one segment


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture with the request that draws it again; `model` says which weights drew it."""

    image: Image.Image
    seed: int
    request: Request
    model: dict[str, str] | None = None  # name, hash, source, dtype, engine

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the picture; a PNG carries its request as the A1111 text and as JSON. Atomic."""
        save_picture(self, path)


def _described(picture: Picture) -> tuple[str, str]:
    """The A1111 text and our JSON of a picture. A picture in memory is embedded no larger than it was used."""
    size = picture.image.size
    request = replace(picture.request, seed=picture.seed)
    for name, read in IMAGES.items():
        image = getattr(request, name)
        if isinstance(image, Image.Image) and image.width * image.height > size[0] * size[1]:
            changed: dict[str, Any] = {name: resize(read(image, name), *size)}
            request = replace(request, **changed)
    text = write_parameters(request, picture.model, version()).replace("\0", " ")
    ours = {"format": FORMAT, "gradina": version(), "model": picture.model, "request": request_out(request)}
    return text.encode("utf-8", "replace").decode(), json.dumps(ours)


def _exif(text: str, ours: str | None) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(EXIF)[COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    if ours is not None:
        exif[DESCRIPTION] = ours
    return exif.tobytes()


def save_picture(picture: Picture, path: str | PathLike[str]) -> None:
    """Writes the picture with its request, whole or not at all: PNG, WebP (both without loss) or JPEG (quality 95).

    In a JPEG, a request of more than 64 KiB (with an embedded picture) is left out with a warning in the log, and the
    A1111 text alone is kept. Raises RequestError for another suffix, and DiskError.
    """
    suffix = choice("suffix of the picture's name", Path(path).suffix.lower(), tuple(SAVE_OPTIONS))
    text, ours = _described(picture)
    described: dict[str, Any]
    if suffix == ".png":
        chunks = PngInfo()
        chunks.add_text("parameters", text)
        chunks.add_text("gradina", ours)
        described = {"pnginfo": chunks}
    elif suffix == ".webp":
        described = {"exif": _exif(text, ours)}
    else:
        exif = _exif(text, ours)
        if len(exif) > EXIF_BYTES:
            log.warning("%s: the request is too large for a JPEG, which now holds the A1111 text alone; use PNG", path)
            exif = _exif(text, None)
        if len(exif) > EXIF_BYTES:
            raise RequestError(f"prompt: too long for a JPEG ({len(exif)} bytes, at most {EXIF_BYTES}); save a PNG")
        described = {"exif": exif}
    with atomic_write(path) as file:
        picture.image.convert("RGB").save(file, **SAVE_OPTIONS[suffix], **described)
