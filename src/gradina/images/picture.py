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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from gradina.errors import PictureError, RequestError
from gradina.files import atomic_write, file_sha256
from gradina.images.infotext import has_settings, model_of, read_parameters, write_parameters
from gradina.images.open import SAVE_OPTIONS, check_file, open_image, open_mask, open_picture, resize
from gradina.images.programs import comfyui, drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
from gradina.images.programs import settings as program_settings
from gradina.images.programs.settings import ProgramSettings
from gradina.images.text_chunks import read_hidden_texts, read_texts
from gradina.request import Request
from gradina.request_checks import choice
from gradina.texts import json_or_none

log = logging.getLogger(__name__)

FORMAT = 1  # of gradina's JSON
IMAGES = {"init_image": open_picture, "mask_image": open_mask}
MAX_EXIF_BYTES = 65_500  # of the one EXIF segment of a JPEG
KNOWN = "A1111's web UI, ComfyUI, Draw Things, Easy Diffusion, Fooocus, InvokeAI, NovelAI or SwarmUI"
PROGRAMS: dict[str, Callable[[Mapping[str, str]], ProgramSettings | str | None]] = {  # tried before A1111's text
    "invokeai": invokeai.read, "swarmui": swarmui.read, "fooocus": fooocus.read, "novelai": novelai.read,
    "easydiffusion": easydiffusion.read, "drawthings": drawthings.read,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The request and the model in a picture's file; `notes` are sentences on what is not honoured."""

    request: Request
    source: str  # gradina, or the program: a1111, comfyui, or one of PROGRAMS
    model: dict[str, str] | None = None  # name, hash, source, dtype, engine
    notes: tuple[str, ...] = ()
    parameters: str | None = None  # the A1111 text in the file
    version: str | None = None  # of the gradina that drew it


@functools.cache
def version() -> str:
    return importlib.metadata.version("gradina")


# Writing


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


def _image_from_dict(name: str, value: Any, folder: Path | None) -> Any:
    """The picture that `_image_to_dict` described; a relative path is also tried in `folder`."""
    keys = isinstance(value, dict) and all(isinstance(text, str) for text in value.values()) and set(value)
    if value is None:
        return None
    if keys == {"png"}:
        try:
            data = base64.b64decode(value["png"], validate=True)
        except ValueError as error:
            raise PictureError(
                f"{name}: its base64 text is damaged ({error}); take the picture from its source"
            ) from None
        return IMAGES[name](data, name)
    if keys != {"path", "sha256"}:
        raise RequestError(
            f"{name}: got {str(value)[:80]!r}, expected an object of png (base64), or of path and sha256"
        )
    given = Path(value["path"])
    paths = [given] if folder is None else [given, folder / given, folder / given.name]
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
        choice("request", name, tuple(field.name for field in fields(Request)))
    folder = None if folder is None else Path(folder)
    return Request(**{k: _image_from_dict(k, v, folder) if k in IMAGES else v for k, v in values.items()})


# Reading


def read_picture(path: str | PathLike[str], strict: bool = True) -> Record:
    """The record in a picture's file: gradina's JSON, else what another program wrote.

    Unless `strict`, a missing or changed init or mask picture is noted. Raises PictureError for a file that is no
    picture or carries no request, RequestError for an invalid request; both name the file.
    """
    name = os.fspath(path)
    try:
        record = _read(read_texts(path), Path(path), strict) or _read(read_hidden_texts(path), Path(path), strict)
    except (PictureError, RequestError) as error:
        if str(error).startswith(f"picture: {name} "):
            raise
        raise type(error)(f"picture: {name}: {error}") from error
    if record is None:
        raise PictureError(f"picture: {name} carries no request; give a picture drawn by gradina or by {KNOWN}")
    return record


def _read(texts: Mapping[str, str], path: Path, strict: bool) -> Record | None:
    """The record in the texts of a file, gradina's before others'; None if there is none."""
    parameters = texts.get("parameters") or texts.get("UserComment")
    for text in (texts.get("gradina", ""), texts.get("ImageDescription", "")):
        if text.startswith("{") and (record := _from_gradina(text, path.parent, strict)):
            return replace(record, parameters=parameters)
    for name, read in PROGRAMS.items():
        if (written := read(texts)) is not None:
            return _from_program(name, written, path)
    a1111 = texts.get("parameters", "")
    if not a1111 or _is_json(a1111):
        comments = (texts.get(key, "") for key in ("UserComment", "ImageDescription", "XPComment", "comment"))
        a1111 = next(filter(has_settings, comments), "")
    if not a1111 and (settings := comfyui.read(texts)):  # some of its nodes write an A1111 text, too
        return _from_program("comfyui", settings, path)
    if not a1111:  # programs that save a picture again keep its texts by other keywords
        a1111 = next((text for text in texts.values() if not _is_json(text) and has_settings(text)), "")
    return _from_program("a1111", a1111, path) if a1111 else None


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object, and not a prompt that begins with a brace."""
    return isinstance(json_or_none(text), dict)


def _from_program(source: str, settings: ProgramSettings | str, path: Path) -> Record:
    """The record of another program: its settings, or its A1111 text."""
    if isinstance(settings, str):
        request, notes = read_parameters(settings)
        model = model_of(settings)
        return Record(request=request, source=source, model=model, notes=tuple(notes), parameters=settings)
    if settings.size_of_picture and not settings.values.keys() & {"width", "height"}:
        with open_image(path, "picture") as image:
            sides = {"width": ("width", image.width), "height": ("height", image.height)}
        settings = replace(settings, values={**settings.values, **sides})
    request, notes = program_settings.to_request(settings)
    return Record(request=request, source=source, model=program_settings.model_of(settings), notes=tuple(notes))


def _from_gradina(text: str, folder: Path, strict: bool) -> Record | None:
    """The record in gradina's JSON; None for any other text."""
    try:
        data = json.loads(text)
        version, values = str(data["gradina"]), dict(data["request"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = {field.name for field in fields(Request)}
    unknown = {name: str(values.pop(name)) for name in sorted(set(values) - known)}
    notes = [f"{name}: {value[:80]} (not known to this gradina, left out)" for name, value in unknown.items()]
    if data.get("format") != FORMAT:
        notes.append(f"the file was written by gradina {version} in a newer form; unknown fields are left out")
    for name in IMAGES:
        value: Any = values.get(name)
        try:
            values[name] = _image_from_dict(name, value, folder)
        except PictureError as error:
            if strict:
                raise
            notes.append(str(error))
            values[name] = value.get("path")
    if values["init_image"] is None:
        values["mask_image"] = None
    model = data.get("model")
    named = {str(key): str(value) for key, value in model.items()} if isinstance(model, dict) else None
    return Record(request=Request(**values), source="gradina", model=named, notes=tuple(notes), version=version)
