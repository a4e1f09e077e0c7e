"""The settings that a program wrote into a picture, and their conversion to a Request with notes.

Values are those of the file, of any type: what cannot be used is left open and noted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gradina.errors import PictureError, RequestError
from gradina.images.programs.names import sampler_and_schedule, short
from gradina.request import Request

TYPES = {"steps": int, "seed": int, "width": int, "height": int, "guidance_scale": float, "guidance_rescale": float}
VALUE_ERRORS = (ValueError, TypeError, ArithmeticError, RecursionError)  # of converting any value

WEIGHTS_NOTE = "prompt: weights such as (word:1.2), ((word)) or [word] are read as plain words"
_EMBEDDING = re.compile(r"\bembedding:[^\s:<>\[\]]+")
NETWORK_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>\n]*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """What a file says of its picture, before conversion; raw values by the names of a Request."""

    prompt: object = ""
    negative_prompt: object = ""
    values: Mapping[str, tuple[str, object]] = field(default_factory=dict)  # by field: key and value
    sampler: object = ""
    schedule: object = ""
    model: Mapping[str, object] = field(default_factory=dict)  # name, hash
    loras: Sequence[tuple[object, object]] = ()  # names and scales
    unsupported: Mapping[str, object] = field(default_factory=dict)  # by the program's keys
    notes: Sequence[str] = ()
    size_of_picture: bool = False  # whether a missing size is that of the picture


def load_object(text: str, program: str, key: str) -> dict[str, Any]:
    """The JSON object in a program's text; raises PictureError, which names program and key."""
    try:
        data = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise PictureError(f"{program}'s {key} is not JSON ({reason}); give another copy of the file") from None
    return as_object(data, program, key)


def as_object(data: object, program: str, key: str) -> dict[str, Any]:
    """A JSON object; raises PictureError for any other value."""
    if isinstance(data, dict):
        return data
    raise PictureError(f"{program}'s {key} is {short(data)!r}, expected a JSON object; give another copy of the file")


def as_objects(data: object) -> list[dict[str, Any]]:
    """The objects in a JSON list; none for any other value."""
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []


def pick(data: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """Those of the program's `keys` that are in its data, as `ProgramSettings.values`."""
    return {name: (key, data[key]) for key, name in keys.items() if key in data}


def pick_size(data: Mapping[str, Any], key: str) -> dict[str, tuple[str, object]]:
    """Width and height of a size that is written as one text, as `ProgramSettings.values`."""
    sides = re.findall(r"\d{1,6}", str(data.get(key, ""))[:40])
    return {name: (key, side) for name, side in zip(("width", "height"), sides, strict=False)}


def without(
    data: Mapping[str, Any], keys: Container[str], harmless: Container[tuple[str, object]] = ()
) -> dict[str, object]:
    """The data without some keys, and without pairs of key and value that change nothing."""
    return {key: value for key, value in data.items() if key not in keys and (key, value) not in harmless}


def _integer(digits: str) -> int | float:
    """An integer, or infinity for one of more digits than Python parses."""
    return int(digits) if len(digits) < 4000 else float("inf")


def text_of(key: str, value: object, notes: list[str]) -> str:
    """A text, or the lines of one; a note for any other value, which is left out."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # without lone surrogates
    if value is not None:
        notes.append(f"{key}: {short(value)} (no text, left out)")
    return ""


@contextmanager
def noted(key: str, value: object, notes: list[str]) -> Iterator[None]:
    """Turns the error of a value that cannot be used into a note."""
    try:
        yield
    except VALUE_ERRORS:
        notes.append(f"{key}: {short(value)} (cannot be used, left open)")


def to_number(value: object, type_: type) -> int | float:
    """A value as a number of a type; raises ValueError or TypeError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    if isinstance(value, str):
        value = int(value) if value.strip().removeprefix("-").isdigit() else float(value)
    if type_ is int and value != int(value):
        raise ValueError
    return int(value) if type_ is int else float(value)


def request_fields(values: Mapping[str, tuple[str, object]], notes: list[str]) -> dict[str, Any]:
    """The fields of a request whose values are valid; sizes are cut to multiples of 8."""
    fields: dict[str, Any] = {}
    for name, (key, value) in values.items():
        if value is None or value == "":
            continue
        with noted(key, value, notes):
            number = to_number(value, TYPES[name])
            if name in ("width", "height") and number % 8:
                notes.append(f"{key}: {number} (cut to a multiple of 8)")
                number -= number % 8
            checked: dict[str, Any] = {name: number}
            Request(**checked)
            fields[name] = number
    sides = {name: fields[name] for name in ("width", "height") if name in fields}
    try:
        Request(**sides)
    except RequestError:
        notes.append(f"size: {' x '.join(map(str, sides.values()))} (cannot be used, left open)")
        fields = {name: value for name, value in fields.items() if name not in sides}
    return fields


def to_request(settings: ProgramSettings) -> tuple[Request, list[str]]:
    """The request that a program's settings describe, and a note on each setting that is not honoured."""
    notes: list[str] = []
    texts = {"prompt": settings.prompt, "negative prompt": settings.negative_prompt}
    prompts = [text_of(key, value, notes) for key, value in texts.items()]
    fields = request_fields(settings.values, notes)
    sampler = text_of("sampler", settings.sampler, notes)
    schedule = text_of("schedule", settings.schedule, notes)
    fields |= sampler_and_schedule(sampler, schedule, notes)
    notes += [
        f"LoRA {short(name)} at {short(scale)} is left out: its file is not here; give it to the request itself"
        for name, scale in settings.loras
    ]
    notes += syntax_notes("\n".join(prompts))
    notes += settings.notes
    rest = [f"{short(key)}: {short(value)}" for key, value in settings.unsupported.items() if value and value != "None"]
    if rest:
        notes.append(f"not honoured: {', '.join(rest)}")
    prompt, negative = map(without_networks, prompts)
    return Request(prompt=prompt, negative_prompt=negative, **fields), notes


def model_of(settings: ProgramSettings) -> dict[str, str] | None:
    """Name and hash of the model, where the file has them."""
    return {key: value for key, value in settings.model.items() if isinstance(value, str) and value} or None


def without_networks(prompt: str) -> str:
    """A prompt without tags such as `<lora:...>`."""
    return NETWORK_TAG.sub("", prompt)


def syntax_notes(text: str) -> list[str]:
    """Notes on the syntax of other programs in a prompt."""
    notes = [
        f"prompt: {short(network[0])} is left out: it names no file; give a LoRA's to the request itself"
        for network in NETWORK_TAG.finditer(text)
    ]
    notes += embedding_notes(text)
    if re.search(r"(?<!\\)[()\[\]]", text):
        notes.append(WEIGHTS_NOTE)
    for word, meaning in (("AND", "draws two prompts at once"), ("BREAK", "begins a new chunk of tokens")):
        if re.search(rf"\b{word}\b", text):
            notes.append(f"prompt: {word} is read as a plain word; there it {meaning}")
    return notes


def embedding_notes(text: str) -> list[str]:
    """A note on ComfyUI's embeddings in a prompt."""
    names = ", ".join(dict.fromkeys(match[0].rstrip(".,)") for match in _EMBEDDING.finditer(text)))
    return [f"prompt: {names} is read as plain words; give the embedding's file as a concept"] if names else []
