"""The values that the fields of a request may have; an error names the field, its value and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any, TypeAlias

from gradina.errors import RequestError

MAX_PIXELS = 16_800_000  # of a picture that is read or drawn
MAX_SEED = 2**64 - 1  # as torch.manual_seed takes it

Check: TypeAlias = tuple[Callable[[Any], Any], str]  # whether a value is valid, and what is expected of it


def check_choice(what: str, got: str, choices: tuple[str, ...]) -> str:
    """`got`, if it is one of `choices`; else raises RequestError, which lists them and suggests the nearest."""
    if got in choices:
        return got
    near = difflib.get_close_matches(str(got), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RequestError(f"{what}: there is no {got!r}{hint} (choices: {', '.join(choices)})")


def _number(low: float, high: float, kind: type = float) -> Check:
    types = int if kind is int else int | float
    what = f"a whole number from {low} to {high}" if kind is int else f"a number from {low:g} to {high:g}"
    return lambda v: isinstance(v, types) and not isinstance(v, bool) and low <= v <= high, what  # NaN is in no range


def _is_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) for text in value)


def _is_interval(value: Any) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return pair and bool(0 <= value[0] <= value[1])


def _is_weighted_file(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] != ""


_CHECKS: dict[str, Check] = {
    "prompt": (lambda v: isinstance(v, str) or (v and _is_texts(v)), "a text or a list of at least one text"),
    "negative_prompt": (lambda v: isinstance(v, str), "a text"),
    "images": _number(1, 4096, int), "steps": _number(1, 1000, int), "reuse": _number(1, 1000, int),
    "guidance_scale": _number(0, 1000), "guidance_rescale": _number(0, 1), "eta": _number(0, 1),
    "strength": _number(0, 1), "width": _number(8, 8192, int), "height": _number(8, 8192, int),
    "seed": _number(0, MAX_SEED, int),
    "guidance_interval": (_is_interval, "two noise levels (sigma), lowest first"),
    "concepts": (lambda v: _is_texts(v) and all(v), "files of textual inversion"),
    "edit": (_is_weighted_file, "a file and a share, such as ('bird.safetensors', 0.7)"),
}  # fmt: skip
_LORA = (_is_weighted_file, "a file and its scale, such as ('bear.safetensors', 0.8)")


def _expect(name: str, value: Any, is_valid: Callable[[Any], Any], expected: str) -> None:
    if not is_valid(value):
        raise RequestError(f"{name}: got {value!r}, expected {expected}")


def check_request(r: Any, choices_of: Mapping[str, tuple[str, ...]]) -> None:
    """Raises RequestError for a field that is not valid; `choices_of` has the names that some fields take."""
    optional = {field.name for field in fields(r) if field.default is None}
    for name, check in _CHECKS.items():
        if getattr(r, name) is not None or name not in optional:
            _expect(name, getattr(r, name), *check)
    for name, choices in choices_of.items():
        if getattr(r, name) is not None:
            check_choice(name, getattr(r, name), choices)
    for name in ("width", "height"):
        if (side := getattr(r, name)) and side % 8:
            raise RequestError(f"{name}: got {side}, expected a multiple of 8 (try {side - side % 8 or 8})")
    if r.width and r.height and r.width * r.height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.1f} megapixels"
        raise RequestError(f"width, height: got {r.width} x {r.height}, expected at most {limit}")
    for name in ("init_image", "mask_image"):
        value = getattr(r, name)
        if value is not None and not isinstance(value, (str, PathLike)) and not hasattr(value, "getbbox"):
            raise RequestError(f"{name}: got {type(value).__name__}, expected a path or a PIL image")
    if r.edit is not None:
        _expect("edit: share", r.edit[1], *_number(-2, 3))
    for lora in r.loras if isinstance(r.loras, tuple) else (r.loras,):
        _expect("loras", lora, *_LORA)
        _expect(f"loras: scale of {lora[0]}", lora[1], *_number(-100, 100))
    if r.mask_image is not None and r.init_image is None:
        raise RequestError("mask_image: got a mask without an init_image; give the picture that it masks")
