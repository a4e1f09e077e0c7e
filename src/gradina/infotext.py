"""The A1111 `parameters` text: a Request as the web UI of AUTOMATIC1111 writes it, and what such a text asks for.

A prompt, a line `Negative prompt: ...`, and a line `Steps: 20, Sampler: DPM++ 2M, ...`, whose values are quoted as
JSON where they hold a comma, a colon or a line break.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gradina.errors import RequestError
from gradina.request import Request

NEGATIVE = "Negative prompt:"

# Their name            ours               schedule: not named  "Automatic"
SAMPLERS = (
    ("DDPM",            "ddpm",            "leading",           "leading"),
    ("DDIM",            "ddim",            "leading",           "leading"),
    ("PLMS",            "pndm",            "leading",           "leading"),
    ("LMS",             "lms",             "linspace",          "linspace"),
    ("Euler",           "euler",           "linspace",          "linspace"),
    ("Euler a",         "euler_ancestral", "linspace",          "linspace"),
    ("Heun",            "heun",            "linspace",          "linspace"),
    ("DPM++ 2M",        "dpmpp_2m",        "linspace",          "karras"),
    ("DPM++ 2M SDE",    "dpmpp_2m_sde",    "linspace",          "exponential"),
    ("DPM++ SDE",       "dpmpp_sde",       "linspace",          "karras"),
    ("UniPC",           "unipc",           "linspace",          "linspace"),
    ("SGD",             "sgd",             "linspace",          "linspace"),  # from here on names are ours
    ("Momentum",        "momentum",        "linspace",          "linspace"),
    ("Nesterov",        "nesterov",        "linspace",          "linspace"),
    ("Adam",            "adam",            "linspace",          "linspace"),
)  # fmt: skip

# Their name            ours; of two rows with one of ours, the first is written
SCHEDULES = (
    ("Karras",            "karras"),
    ("Exponential",       "exponential"),
    ("SGM Uniform",       "sgm_uniform"),
    ("Align Your Steps",  "ays"),
    ("Beta",              "beta"),
    ("Uniform",           "linspace"),
    ("Normal",            "linspace"),
    ("DDIM",              "leading"),
    ("Simple",            "trailing"),
)  # fmt: skip

# Their key             our field            its value from theirs
FIELDS = (
    ("Steps",               "steps",             int),
    ("CFG scale",           "guidance_scale",    float),
    ("CFG rescale",         "guidance_rescale",  float),
    ("Guidance interval",   "guidance_interval", lambda text: tuple(map(float, text.split(" to ")))),
    ("Seed",                "seed",              int),
    ("Denoising strength",  "strength",          float),
    ("Eta",                 "eta",               float),
    ("Rates",               "rates",             str),
    ("Reuse",               "reuse",             int),
    ("Loras",               "loras",             json.loads),
    ("Concepts",            "concepts",          json.loads),
    ("Edit",                "edit",              json.loads),
)  # fmt: skip

# Their key, or how it begins, and what is the matter with it; of several that fit, the first
NOT_HONOURED = (
    ("Hires",               "the second pass at a higher resolution is not drawn"),
    ("First pass size",     "the second pass at a higher resolution is not drawn"),
    ("Clip skip",           "the text is read from the layer that the model itself names"),
    ("ENSD",                "noise is seeded by the seed alone"),
    ("Variation seed",      "the noise of a second seed is not mixed in"),
    ("Seed resize from",    "noise is drawn at the size of the picture"),
    ("Face restoration",    "faces are left as they are drawn"),
    ("Lora hashes",         "this names no file; give it as a LoRA of the request"),
    ("TI hashes",           "this names no file; give it as a concept of the request"),
    ("Hypernet",            "hypernetworks are not supported"),
    ("ControlNet",          "ControlNet is not supported"),
    ("AddNet",              "additional networks are not supported"),
    ("Refiner",             "a second model for the last steps is not supported"),
    ("VAE",                 "the model's own autoencoder is used"),
    ("Tiling",              "the picture will not tile"),
    ("Token merging",       "all tokens are computed"),
    ("NGMS",                "guidance is computed at every step"),
    ("Mask",                "the mask is not in the file; give it as mask_image"),
    ("Inpaint",             "the whole picture is drawn, the mask alone decides what stays"),
    ("Emphasis",            "prompts have no weights here"),
)  # fmt: skip

# These say nothing about the pixels, or were the default all along.
SILENT = ("Version", "Model", "Model hash", "VAE hash", "Init image hash", "User", "Batch size", "Batch pos", "RNG")
HARMLESS = {("Clip skip", "1"), ("ENSD", "0"), ("VAE Encoder", "Full"), ("VAE Decoder", "Full"), ("Tiling", "False")}

_PAIR = re.compile(r'\s*(\w[^:,"\n]{0,80}?)\s*:\s*("(?:[^"\\]|\\.)*"(?=\s*(?:,|$))|[^,]*)\s*(?:,|$)')
_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>\n]*)>")


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n\r"]', text) else text


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"':
        return text.strip()
    try:
        return str(json.loads(text))
    except ValueError:
        return text.strip()


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Keys and values of the last line; words without a key come with an empty value."""
    at = 0
    while at < len(line):
        found = _PAIR.match(line, at)
        if found:
            yield found[1], _unquoted(found[2])
            at = found.end()
        else:
            end = line.find(",", at) % (len(line) + 1)  # no further comma: the end of the line
            if line[at:end].strip():
                yield line[at:end].strip(), ""
            at = end + 1


@dataclass(frozen=True, slots=True)
class _Infotext:
    """The text in its parts, nothing understood yet."""

    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]
    rest: str  # lines after the parameters, as some extensions write

    @property
    def ours(self) -> bool:
        return self.pairs.get("Version", "").startswith("gradina")


def _parse(text: str) -> _Infotext:
    lines = text.rstrip().split("\n")
    at = next((i for i in reversed(range(len(lines))) if re.match(r"Steps:\s*\d", lines[i])), None)
    if at is None:
        named = sum(1 for _, value in _pairs(lines[-1]) if value)
        at = len(lines) - 1 if named >= 3 else len(lines)
    split = next((i for i in range(at) if lines[i].startswith(NEGATIVE)), at)
    negative = "\n".join(lines[split:at])[len(NEGATIVE) :].removeprefix(" ")
    pairs = dict(_pairs(lines[at])) if at < len(lines) else {}
    return _Infotext("\n".join(lines[:split]), negative, pairs, "\n".join(lines[at + 1 :]).strip())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"


def _sampler_and_schedule(pairs: Mapping[str, str], ours: bool, notes: list[str]) -> dict[str, Any]:
    """`sampler` and `schedule`, also where the schedule is a part of the sampler's name or goes without saying."""
    sampler, schedule = pairs.get("Sampler", ""), pairs.get("Schedule type", "")
    for theirs, _ in SCHEDULES:
        if sampler.lower().endswith(" " + theirs.lower()):
            sampler, schedule = sampler[: -len(theirs) - 1], schedule or theirs
    row = next((row for row in SAMPLERS if row[0].lower() == sampler.lower()), None)
    if sampler and row is None:
        choices = ", ".join(theirs for theirs, *_ in SAMPLERS)
        notes.append(f"Sampler: {_short(sampler)} (not among ours, the model's own is used; choices: {choices})")
    found = next((name for theirs, name in SCHEDULES if theirs.lower() == schedule.lower()), None)
    if schedule and found is None and schedule != "Automatic":
        choices = ", ".join(theirs for theirs, _ in SCHEDULES)
        notes.append(f"Schedule type: {_short(schedule)} (not among ours, the model's own is used; choices: {choices})")
    elif row and found is None and not ours:
        found = row[3] if schedule else row[2]
    return {"sampler": row[1] if row else None, "schedule": found}


def _fields(pairs: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The fields of a request whose values can be used; notes say which cannot."""
    rows: list[tuple[str, dict[str, Any]]] = []
    fields: dict[str, Any] = {}
    for key, name, value_of in FIELDS:
        if key in pairs:
            with _noted(key, pairs[key], notes):
                rows.append((key, {name: value_of(pairs[key])}))
    if size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", pairs.get("Size", "")):
        width, height = int(size[1]), int(size[2])
        rows.append(("Size", {"width": width - width % 8, "height": height - height % 8}))
        if width % 8 or height % 8:
            notes.append(f"Size: {size[0]} (cut to multiples of 8)")
    for key, values in rows:
        with _noted(key, pairs[key], notes):
            Request(**values)
            fields |= values
    return fields


@contextmanager
def _noted(key: str, value: str, notes: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError:
        notes.append(f"{key}: {_short(value)} (cannot be used, left open)")


def _not_honoured(pairs: Mapping[str, str]) -> list[str]:
    """One sentence for each reason, naming all that it stops."""
    reasons: dict[str, list[str]] = {}
    known = {"Sampler", "Schedule type", "Size", *SILENT, *(key for key, *_ in FIELDS)}
    for key, value in pairs.items():
        if key not in known and (key, value) not in HARMLESS:
            why = next((why for begin, why in NOT_HONOURED if key.lower().startswith(begin.lower())), "not known here")
            reasons.setdefault(why, []).append(f"{_short(key)}: {_short(value)}" if value else _short(key))
    return [f"{', '.join(stopped)} (not honoured: {why})" for why, stopped in reasons.items()]


def _syntax(text: str) -> list[str]:
    """What the web UI would read in a prompt beyond its words."""
    notes = [
        f"prompt: {_short(network[0])} is left out: it names no file; give a LoRA's to the request itself"
        for network in _NETWORK.finditer(text)
    ]
    if re.search(r"(?<!\\)[()\[\]]", text):
        notes.append("prompt: weights such as (word:1.2), ((word)) or [word] are read as plain words")
    for word, meaning in (("AND", "draws two prompts at once"), ("BREAK", "begins a new chunk of tokens")):
        if re.search(rf"\b{word}\b", text):
            notes.append(f"prompt: {word} is read as a plain word; there it {meaning}")
    return notes


def read_parameters(text: str) -> tuple[Request, list[str]]:
    """The request that an A1111 text describes, and a sentence on each thing in it that cannot be honoured.

    The seeds of that web UI are drawn on the graphics card unless it says `RNG: CPU`: such a picture comes out another.
    """
    parsed = _parse(text)
    pairs, notes = parsed.pairs, list[str]()
    fields = _fields(pairs, notes) | _sampler_and_schedule(pairs, parsed.ours, notes)
    prompts = [parsed.prompt, parsed.negative_prompt]
    notes += _not_honoured(pairs)
    if "strength" in fields and any(key.startswith(("Hires", "First pass")) for key in pairs):
        del fields["strength"]  # it was the second pass's
    elif "strength" in fields:
        notes.append(
            "Denoising strength: drawn over another picture, which this text does not hold; give it as init_image"
        )
    if not parsed.ours:
        notes += _syntax("\n".join(prompts))
        prompts = [_NETWORK.sub("", prompt) for prompt in prompts]
        if "Seed" in pairs and pairs.get("RNG") != "CPU":
            notes.append("Seed: its noise was drawn on the graphics card (no `RNG: CPU`), so the picture will differ")
    if not pairs:
        notes.append("no line of parameters (Steps: ...) was found: all of it is read as prompts")
    if parsed.rest:
        notes.append(f"{_short(parsed.rest)} (lines after the parameters, left out)")
    return Request(prompt=prompts[0], negative_prompt=prompts[1], **fields), notes


def model_of(text: str) -> dict[str, str] | None:
    """The name and the hash of the model that an A1111 text names, as far as it does."""
    pairs = _parse(text).pairs
    found = {ours: pairs[key] for key, ours in (("Model", "name"), ("Model hash", "hash")) if pairs.get(key)}
    return found or None


def write_parameters(request: Request, model: dict[str, str] | None = None, version: str = "") -> str:
    """The A1111 text of one picture; fields that are None are left out.

    Raises RequestError where the request draws several pictures: `request.alone(i)` is one of them.
    """
    if len(request.prompts) != 1:
        raise RequestError(
            f"prompt: this request draws {len(request.prompts)} pictures; describe one, request.alone(i)"
        )
    pairs: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": {ours: theirs for theirs, ours, _, _ in SAMPLERS}.get(str(request.sampler)),
        "Schedule type": {ours: theirs for theirs, ours in reversed(SCHEDULES)}.get(str(request.schedule)),
        "CFG scale": request.guidance_scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}" if request.width and request.height else None,
        "Model hash": (model or {}).get("hash"),
        "Model": (model or {}).get("name"),
        "Denoising strength": request.strength if request.init_image is not None else None,
        "Eta": request.eta,
        "Rates": request.rates,
        "CFG rescale": request.guidance_rescale or None,
        "Guidance interval": " to ".join(map(str, request.guidance_interval)) if request.guidance_interval else None,
        "Reuse": request.reuse if request.reuse > 1 else None,
        "Loras": json.dumps(request.loras) if request.loras else None,
        "Edit": json.dumps(request.edit) if request.edit else None,
        "Concepts": json.dumps(request.concepts) if request.concepts else None,
        "RNG": "CPU",
        "Version": f"gradina {version}".strip(),
    }
    negative = f"\n{NEGATIVE} {request.negative_prompt}" if request.negative_prompt else ""
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value not in (None, ""))
    return f"{request.prompts[0]}{negative}\n{line}"
