"""A picture's file carries its Request, so that it can be drawn again: as the A1111 text for everybody, as JSON for us.

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
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from gradina.errors import PictureError, RequestError
from gradina.files import file_sha256
from gradina.images.infotext import has_settings, model_of, read_parameters
from gradina.images.open import check_file, open_image, open_mask, open_picture
from gradina.images.programs.registry import after_a1111, before_a1111
from gradina.images.programs.settings import Told, request_of
from gradina.images.programs.settings import model_of as model_told
from gradina.images.stealth import hidden
from gradina.images.text_chunks import texts
from gradina.request import Request, choice

log = logging.getLogger(__name__)

FORMAT = 1  # of our JSON
IMAGES = {"init_image": open_picture, "mask_image": open_mask}

EXIF, COMMENT, DESCRIPTION = 0x8769, 0x9286, 0x010E
KNOWN = "A1111's web UI, ComfyUI, Draw Things, Easy Diffusion, Fooocus, InvokeAI, NovelAI or SwarmUI"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a picture's file says of its making; `notes` are sentences on what cannot be honoured."""

    request: Request
    source: str  # gradina, or the program: a1111, comfyui, or one of images/programs/registry.py
    model: dict[str, str] | None = None  # name, hash, source, dtype, engine
    notes: tuple[str, ...] = ()
    parameters: str | None = None  # the A1111 text, as the file has it
    version: str | None = None  # of the gradina that drew it


@functools.cache
def version() -> str:
    return importlib.metadata.version("gradina")


# A request as JSON


def _image_out(name: str, value: Any, strict: bool = True) -> dict[str, str] | None:
    """A file as its path and hash; a picture in memory as the PNG of what the model will see of it."""
    if value is None:
        return None
    if not isinstance(value, Image.Image):
        if not strict and not os.path.isfile(value):
            return {"path": str(value)}
        return {"path": str(value), "sha256": file_sha256(check_file(value, name))}
    file = io.BytesIO()
    IMAGES[name](value, name).save(file, "PNG")
    return {"png": base64.b64encode(file.getvalue()).decode()}


def _image_in(name: str, value: Any, folder: Path | None) -> Any:
    """What `_image_out` described; a relative path is also looked for beside the file that names it."""
    forms = isinstance(value, dict) and all(isinstance(text, str) for text in value.values()) and set(value)
    if value is None:
        return None
    if forms == {"png"}:
        try:
            data = base64.b64decode(value["png"], validate=True)
        except ValueError as error:
            raise PictureError(
                f"{name}: its base64 text is damaged ({error}); take the picture from its source"
            ) from None
        return IMAGES[name](data, name)
    if forms != {"path", "sha256"}:
        raise RequestError(
            f"{name}: got {str(value)[:80]!r}, expected an object of png (base64), or of path and sha256"
        )
    given = Path(value["path"])
    places = [given] if folder is None else [given, folder / given, folder / given.name]
    there = [place for place in places if place.is_file()]
    for place in there:
        if file_sha256(place) == value["sha256"]:
            return str(place)
    what = f"{there[0]} is not the picture any more that it was" if there else f"{given} is not there"
    raise PictureError(f"{name}: {what}; put the one with sha256 {value['sha256'][:12]}... back, or name another")


def request_out(request: Request, strict: bool = True) -> dict[str, Any]:
    return {
        field.name: _image_out(field.name, value, strict) if field.name in IMAGES else value
        for field in fields(Request)
        for value in (getattr(request, field.name),)
    }


def _request_in(values: Any, folder: Path | None) -> Request:
    if not isinstance(values, dict):
        raise RequestError(f"request: got {str(values)[:80]!r}, expected a JSON object of its fields")
    for name in values:
        choice("request", name, tuple(field.name for field in fields(Request)))
    return Request(**{k: _image_in(k, v, folder) if k in IMAGES else v for k, v in values.items()})


def to_json(request: Request, strict: bool = True) -> str:
    """The request as a JSON object of all its fields, in ASCII.

    A picture in memory is embedded as a base64 PNG, a path is written with the sha256 of its file; PictureError
    says which cannot be read. Unless `strict`, the path of a file that is gone is written alone.
    """
    return json.dumps(request_out(request, strict))


def from_json(text: str, folder: str | PathLike[str] | None = None) -> Request:
    """The request that `to_json` wrote; paths are looked for as they are, then in `folder`.

    Raises RequestError for what is no request or has fields that are not known, PictureError for a picture that is
    not there or has changed.
    """
    return _request_in(_loaded(text), None if folder is None else Path(folder))


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"request: this is no JSON ({error}); expected an object of a request's fields") from None


# Reading


def read_picture(path: str | PathLike[str], strict: bool = True) -> Record:
    """What a picture's file says of its making: our own JSON, else what another program wrote.

    Unless `strict`, a picture that it was drawn from may be missing or changed, which becomes a note. Raises
    PictureError for a file that is no picture or carries neither, RequestError where what it carries cannot be drawn;
    both name the file.
    """
    name = os.fspath(path)
    try:
        found = texts(path)
        record = _read(found, Path(path), strict) or _read(hidden(path), Path(path), strict)
    except (PictureError, RequestError) as error:
        if str(error).startswith(f"picture: {name} "):
            raise
        raise type(error)(f"picture: {name}: {error}") from error
    if record is None:
        raise PictureError(f"picture: {name} carries no request; give a picture drawn by gradina or by {KNOWN}")
    return record


def _read(found: Mapping[str, str], path: Path, strict: bool) -> Record | None:
    """The record in the texts of a file, ours before those of others; None if there is none."""
    parameters = found.get("parameters") or found.get("UserComment")
    for ours in (found.get("gradina", ""), found.get("ImageDescription", "")):
        if ours.startswith("{") and (record := _ours(ours, path.parent, strict)):
            return replace(record, parameters=parameters)
    if told := before_a1111(found):
        return _others(*told, path)
    if (text := found.get("parameters")) and not _is_json(text):
        return _others("a1111", text, path)
    for key in ("UserComment", "ImageDescription", "XPComment", "comment"):  # where any text may stand
        if has_settings(found.get(key, "")):
            return _others("a1111", found[key], path)
    if told := after_a1111(found):
        return _others(*told, path)
    anywhere = (text for text in found.values() if not _is_json(text) and has_settings(text))
    text = next(anywhere, "")  # programs that save a picture again keep its texts by other keywords
    return _others("a1111", text, path) if text else None


def _is_json(text: str) -> bool:
    """Whether a text is an object of JSON, and so no prompt, which may begin with a brace, too."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _others(source: str, told: Told | str, path: Path) -> Record:
    """The record of another program: what it told, or A1111's text."""
    if isinstance(told, str):
        request, notes = read_parameters(told)
        return Record(request=request, source=source, model=model_of(told), notes=tuple(notes), parameters=told)
    if told.as_large_as_drawn and not told.values.keys() & {"width", "height"}:
        with open_image(path, "picture") as image:
            sides = {"width": ("width", image.width), "height": ("height", image.height)}
        told = replace(told, values={**told.values, **sides})
    request, notes = request_of(told)
    return Record(request=request, source=source, model=model_told(told), notes=tuple(notes))


def _ours(text: str, folder: Path, strict: bool) -> Record | None:
    """The record in our own JSON; None if the text is somebody else's."""
    try:
        data = json.loads(text)
        version, values = str(data["gradina"]), dict(data["request"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = {field.name for field in fields(Request)}
    unknown = {name: str(values.pop(name)) for name in sorted(set(values) - known)}
    notes = [f"{name}: {value[:80]} (not known to this gradina, left out)" for name, value in unknown.items()]
    if data.get("format") != FORMAT:
        notes.append(f"the file was written by gradina {version} in a newer form; what is not known here is left out")
    for name in IMAGES:
        value: Any = values.get(name)
        try:
            values[name] = _image_in(name, value, folder)
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
