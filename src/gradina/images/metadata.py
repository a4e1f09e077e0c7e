"""What a picture's file says of how it was drawn: gradina's JSON, or what another program wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from gradina.errors import PictureError, RequestError
from gradina.images.infotext import has_settings, model_of, read_parameters
from gradina.images.open import open_image
from gradina.images.picture import FORMAT, IMAGES, image_from_dict
from gradina.images.programs import comfyui, drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
from gradina.images.programs import settings as program_settings
from gradina.images.programs.settings import ProgramSettings
from gradina.images.text_chunks import read_hidden_texts, read_texts
from gradina.request import Request
from gradina.texts import json_or_none

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
            values[name] = image_from_dict(name, value, folder)
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
