"""The A1111 `parameters` text: a Request as the web UI of AUTOMATIC1111 writes it, and what such a text asks for.

A prompt, a line `Negative prompt: ...`, and a line `Steps: 20, Sampler: DPM++ 2M, ...`, whose values are quoted as
JSON where they hold a comma, a colon or a line break.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gradina.errors import RequestError
from gradina.images.infotext_grammar import NEGATIVE, parse
from gradina.images.programs.names import SAMPLERS, SCHEDULES, sampler_and_schedule, short
from gradina.images.programs.settings import noted, syntax, without_networks
from gradina.request import Request


def whole(text: str) -> int:
    """A whole number, also as 20.0; raises ValueError for any other."""
    value = number(text)
    if value != int(value):
        raise ValueError(f"{text} is no whole number")
    return int(text) if text.strip().removeprefix("-").isdecimal() else int(value)


def number(text: str) -> float:
    """A number, also with the decimal comma of many languages."""
    return float(text.replace(",", "."))


# Their key             our field            its value from theirs
FIELDS = (
    ("Steps",               "steps",             whole),
    ("CFG scale",           "guidance_scale",    number),
    ("Guidance scale",      "guidance_scale",    number),
    ("CFG rescale",         "guidance_rescale",  number),
    ("Guidance interval",   "guidance_interval", lambda text: tuple(map(float, text.split(" to ")))),
    ("Seed",                "seed",              whole),
    ("Denoising strength",  "strength",          number),
    ("Eta",                 "eta",               number),
    ("Eta DDIM",            "eta",               number),
    ("Rates",               "rates",             str),
    ("Reuse",               "reuse",             whole),
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
    ("Lora",                "this names no file; give it as a LoRA of the request"),
    ("TI hashes",           "this names no file; give it as a concept of the request"),
    ("Hashes",              "these name no files; give a LoRA's, or a concept's, to the request itself"),
    ("Civitai",             "these name no files; give a LoRA's, or a concept's, to the request itself"),
    ("ADetailer",           "faces and hands are left as they are drawn"),
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
SILENT = (
    "Version", "Model", "Model hash", "VAE hash", "Init image hash", "User", "Batch size", "Batch pos", "RNG",
    "Created Date", "App", "Parser", "Downcast alphas_cumprod", "Pad conds", "SDCPP",
)  # fmt: skip
SIDES = ("Width", "Height")  # where there is no Size; not among the known keys, as they are words of prompts, too
HARMLESS = {("Clip skip", "1"), ("ENSD", "0"), ("VAE Encoder", "Full"), ("VAE Decoder", "Full"), ("Tiling", "False")}

MODEL = (("Model hash", "hash"), ("Model", "name"), ("VAE", "vae"), ("VAE hash", "vae_hash"))  # their key, ours

KNOWN = {  # keys by their small letters
    key.lower(): key for key in ("Sampler", "Schedule type", "Scheduler", "Size", *SILENT, *(key for key, *_ in FIELDS))
}


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n\r"]', text) else text


def _fields(pairs: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The fields of a request whose values can be used; notes say which cannot."""
    rows: list[tuple[str, dict[str, Any]]] = []
    fields: dict[str, Any] = {}
    for key, name, value_of in FIELDS:
        if key in pairs:
            with noted(key, pairs[key], notes):
                rows.append((key, {name: value_of(pairs[key])}))
    told = pairs.get("Size") or "x".join(pairs[side] for side in SIDES if side in pairs)
    if size := re.fullmatch(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})\s*(?:px)?", told.lower()):
        width, height = int(size[1]), int(size[2])
        rows.append(("Size", {"width": width - width % 8, "height": height - height % 8}))
        if width % 8 or height % 8:
            notes.append(f"Size: {size[0]} (cut to multiples of 8)")
    elif told:
        notes.append(f"Size: {short(told)} (cannot be used, left open)")
    for key, values in rows:
        with noted(key, pairs.get(key, told), notes):
            Request(**values)
            fields |= values
    return fields


def _is_ours(pairs: Mapping[str, str]) -> bool:
    """Whether gradina wrote the text."""
    return pairs.get("Version", "").startswith("gradina")


def _not_honoured(pairs: Mapping[str, str]) -> list[str]:
    """One sentence for each reason, naming all that it stops."""
    reasons: dict[str, list[str]] = {}
    for key, value in pairs.items():
        silent = key in SIDES or (key, value) in HARMLESS or (key == "VAE" and _is_ours(pairs))
        if key.lower() not in KNOWN and not silent:
            why = next((why for begin, why in NOT_HONOURED if key.lower().startswith(begin.lower())), "not known here")
            reasons.setdefault(why, []).append(f"{short(key)}: {short(value)}" if value else short(key))
    return [f"{', '.join(stopped)} (not honoured: {why})" for why, stopped in reasons.items()]


def read_parameters(text: str) -> tuple[Request, list[str]]:
    """The request that an A1111 text describes, and a sentence on each thing in it that cannot be honoured.

    The seeds of that web UI are drawn on the graphics card unless it says `RNG: CPU`: such a picture comes out another.
    """
    parsed = parse(text, KNOWN)
    pairs, notes = parsed.pairs, list[str]()
    ours = _is_ours(pairs)
    names = pairs.get("Sampler", ""), pairs.get("Schedule type") or pairs.get("Scheduler", "")
    fields = _fields(pairs, notes) | sampler_and_schedule(*names, notes, by_itself=not ours)
    prompts = [parsed.prompt, parsed.negative_prompt]
    notes += _not_honoured(pairs)
    if "strength" in fields and any(key.startswith(("Hires", "First pass")) for key in pairs):
        del fields["strength"]  # it was the second pass's
    elif "strength" in fields:
        notes.append(
            "Denoising strength: drawn over another picture, which this text does not hold; give it as init_image"
        )
    if not ours:
        notes += syntax("\n".join(prompts))
        prompts = [without_networks(prompt) for prompt in prompts]
        if "Seed" in pairs and pairs.get("RNG", "").upper() != "CPU" and pairs.get("Version") != "ComfyUI":
            notes.append("Seed: its noise was drawn on the graphics card (no `RNG: CPU`), so the picture will differ")
    if not pairs:
        notes.append("no line of parameters (Steps: ...) was found: all of it is read as prompts")
    if parsed.rest:
        notes.append(f"{short(parsed.rest)} (lines after the parameters, left out)")
    return Request(prompt=prompts[0], negative_prompt=prompts[1], **fields), notes


def has_settings(text: str) -> bool:
    """Whether a text that may be anything is A1111's."""
    return len(parse(text, KNOWN).pairs) >= 3


def model_of(text: str) -> dict[str, str] | None:
    """The name and the hash of the model that an A1111 text names, as far as it does."""
    pairs = parse(text, KNOWN).pairs
    rows = MODEL if _is_ours(pairs) else MODEL[:2]  # others' names of autoencoders are found by themselves alone
    return {ours: pairs[key] for key, ours in rows if pairs.get(key)} or None


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
        **{key: (model or {}).get(ours) for key, ours in MODEL},
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
