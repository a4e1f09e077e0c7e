"""What a program's text says of a picture, and the one way from there to a Request and notes on what is lost.

Values come as the file has them, of any type: what cannot be used is left open, and said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gradina.errors import PictureError, RequestError
from gradina.images.programs.names import sampler_and_schedule, short
from gradina.request import Request

KINDS = {"steps": int, "seed": int, "width": int, "height": int, "guidance_scale": float, "guidance_rescale": float}
DAMAGE = (ValueError, TypeError, ArithmeticError, RecursionError)  # what odd values do

WEIGHTS = "prompt: weights such as (word:1.2), ((word)) or [word] are read as plain words"
_EMBEDDING = re.compile(r"\bembedding:[^\s:<>\[\]]+")
NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>\n]*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a file says, in our words; `rest` is what is not honoured, by the program's own keys."""

    prompt: object = ""
    negative_prompt: object = ""
    values: Mapping[str, tuple[str, object]] = field(default_factory=dict)  # our field: their key and its value
    sampler: object = ""
    schedule: object = ""
    model: Mapping[str, object] = field(default_factory=dict)  # name, hash
    loras: Sequence[tuple[object, object]] = ()  # names and scales
    rest: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    as_large_as_drawn: bool = False  # so that the picture's own size is a size that is not said


def loaded(text: str, program: str, key: str) -> dict[str, Any]:
    """The JSON object in a program's text; PictureError names program and key where it is none."""
    try:
        data = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise PictureError(f"{program}'s {key} is no JSON ({reason}); give another copy of the file") from None
    return table(data, program, key)


def table(data: object, program: str, key: str) -> dict[str, Any]:
    """An object of JSON; PictureError for anything else."""
    if not isinstance(data, dict):
        raise PictureError(
            f"{program}'s {key} is {short(data)!r}, expected a JSON object; give another copy of the file"
        )
    return data


def _whole(digits: str) -> int | float:
    """A whole number, or infinity for one of more digits than Python reads."""
    return int(digits) if len(digits) < 4000 else float("inf")


def words(key: str, value: object, notes: list[str]) -> str:
    """A prompt, or the lines of one; anything else is no text, which is said."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # without half of a surrogate pair
    if value is not None:
        notes.append(f"{key}: {short(value)} (no text, left out)")
    return ""


@contextmanager
def noted(key: str, value: object, notes: list[str]) -> Iterator[None]:
    """Where a value cannot be used, a note instead of an error."""
    try:
        yield
    except DAMAGE:
        notes.append(f"{key}: {short(value)} (cannot be used, left open)")


def _number(value: object, kind: type) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    if isinstance(value, str):
        value = int(value) if value.strip().removeprefix("-").isdigit() else float(value)
    if kind is int and value != int(value):
        raise ValueError
    return int(value) if kind is int else float(value)


def fields_of(values: Mapping[str, tuple[str, object]], notes: list[str]) -> dict[str, Any]:
    """The fields of a request that can be used; sizes are cut to multiples of 8."""
    fields: dict[str, Any] = {}
    for name, (key, value) in values.items():
        if value is None or value == "":
            continue
        with noted(key, value, notes):
            number = _number(value, KINDS[name])
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


def request_of(told: Told) -> tuple[Request, list[str]]:
    """The request that a program's text describes, and a sentence on each thing in it that cannot be honoured."""
    notes: list[str] = []
    prompts = [words("prompt", told.prompt, notes), words("negative prompt", told.negative_prompt, notes)]
    fields = fields_of(told.values, notes)
    sampler, schedule = words("sampler", told.sampler, notes), words("schedule", told.schedule, notes)
    fields |= sampler_and_schedule(sampler, schedule, notes)
    notes += [lora(name, scale) for name, scale in told.loras]
    notes += syntax("\n".join(prompts))
    notes += told.notes
    if rest := [f"{short(key)}: {short(value)}" for key, value in told.rest.items() if value and value != "None"]:
        notes.append(f"not honoured: {', '.join(rest)}")
    return Request(prompt=without_networks(prompts[0]), negative_prompt=without_networks(prompts[1]), **fields), notes


def model_of(told: Told) -> dict[str, str] | None:
    """Name and hash of the model, as far as they are told."""
    return {key: value for key, value in told.model.items() if isinstance(value, str) and value} or None


def lora(name: object, scale: object) -> str:
    """The note on a LoRA that a file names."""
    return f"LoRA {short(name)} at {short(scale)} is left out: its file is not here; give it to the request itself"


def without_networks(prompt: str) -> str:
    """A prompt without `<lora:...>` and its like."""
    return NETWORK.sub("", prompt)


def syntax(text: str) -> list[str]:
    """What other programs would read in a prompt beyond its words."""
    notes = [
        f"prompt: {short(network[0])} is left out: it names no file; give a LoRA's to the request itself"
        for network in NETWORK.finditer(text)
    ]
    notes += embeddings(text)
    if re.search(r"(?<!\\)[()\[\]]", text):
        notes.append(WEIGHTS)
    for word, meaning in (("AND", "draws two prompts at once"), ("BREAK", "begins a new chunk of tokens")):
        if re.search(rf"\b{word}\b", text):
            notes.append(f"prompt: {word} is read as a plain word; there it {meaning}")
    return notes


def embeddings(text: str) -> list[str]:
    """What ComfyUI would take for learnt words in a prompt."""
    named = dict.fromkeys(found[0].rstrip(".,)") for found in _EMBEDDING.finditer(text))
    return (
        [f"prompt: {', '.join(named)} is read as plain words; give a learnt word's file as a concept"] if named else []
    )
