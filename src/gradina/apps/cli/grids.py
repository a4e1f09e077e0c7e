"""Grids: one picture over the values of one or two fields of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from gradina.errors import RequestError
from gradina.request import Request, parse_concept
from gradina.request_checks import check_choice

Axis = tuple[str, list[Any]]
INTERVALS = ("guidance_interval", "interval")  # of drawing, of training
NUMBERS: dict[str, Callable[[str], Any]] = {
    "steps": int, "reuse": int, "seed": int, "width": int, "height": int, "images": int,
    "guidance_scale": float, "guidance_rescale": float, "eta": float, "strength": float,
}  # fmt: skip


def parse(name: str, text: str | None) -> Any:
    """The value of a request's field, or of the `interval` of training, written as text; RequestError if it is none."""
    if text is None:
        return None
    try:
        if name in INTERVALS:
            low, high = text.split(":")
            return float(low), float(high)
        if name == "edit":
            return _scaled(name, text, 0.7)
        if name == "concepts":
            return tuple(text.strip().split("+"))
        if name == "loras":
            return tuple(_scaled(name, part) for part in text.split("+"))
        return NUMBERS.get(name, str)(text.strip())
    except RequestError:
        raise
    except ValueError:
        expected = "LOW:HIGH" if name in INTERVALS else "a number"
        raise RequestError(f"{name}: got {text!r}, expected {expected}") from None


def _scaled(name: str, text: str, untold: float = 1.0) -> tuple[str, float]:
    """A file and its scale, of FILE or FILE:SCALE; a file whose name has a colon is a FILE."""
    file, colon, scale = text.strip().rpartition(":")
    if (colon and not file) or not text.strip():
        raise RequestError(f"{name}: got {text!r}, which names no file; expected FILE or FILE:SCALE")
    try:
        return (file, float(scale)) if file and not Path(text.strip()).exists() else (text.strip(), untold)
    except ValueError:  # the colon was the path's own
        return text.strip(), untold


def axis(text: str) -> Axis:
    """One axis of a grid, such as guidance_scale=1,3,7.5,14; values that contain commas are parted by | instead."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise RequestError(f"--grid: got {text!r}, expected FIELD=A,B,... such as guidance_scale=1,3,7.5,14")
    name = name.strip().replace("-", "_")
    check_choice("--grid", name, tuple(f.name for f in fields(Request) if f.name != "images"))
    return name, [parse(name, value) for value in values.split("|" if "|" in values else ",")]


def check_grid(axes: list[Axis], request: Request, moving: str | None) -> None:
    """Refuses a grid that cannot be drawn, before a model is loaded."""
    if not axes:
        return
    names = [name for name, _ in axes]
    if len(axes) > 2 or len(set(names)) != len(names):
        raise RequestError(f"--grid: got {', '.join(names)}; expected one field, or two different ones")
    if len(request.prompts) > 1:
        raise RequestError("--grid: give one prompt and one image; more prompts go into --grid 'prompt=one|two'")
    if moving:
        raise RequestError("--grid: a film or a strip shows one picture; leave one of the two out")
    for cell in cells(axes):
        replace(request, **cell)


def cell_label(name: str, value: Any) -> str:
    """What stands beside a value: files by their names alone."""
    if name == "loras":
        return "\n".join(f"{Path(file).stem} {scale:g}" for file, scale in value)
    if name == "concepts":
        return "\n".join(word or Path(file).stem for word, file in map(parse_concept, value))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def cells(axes: list[Axis]) -> Iterator[dict[str, Any]]:
    """What differs in each cell of a grid, row by row; the first field goes across."""
    names, values = zip(*reversed(axes), strict=True)
    return (dict(zip(names, cell, strict=True)) for cell in product(*values))
