"""The A1111 `parameters` text, written from a Request and read into one, as in the web UI of AUTOMATIC1111.

A prompt, a line `Negative prompt: ...`, and a line `Steps: 20, Sampler: DPM++ 2M, ...`, whose values are JSON strings
where they have a comma, a colon or a line break.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from gradina.errors import RequestError
from gradina.images.infotext_grammar import NEGATIVE, parse
from gradina.images.programs.names import SAMPLERS, SCHEDULES, sampler_and_schedule, short
from gradina.images.programs.settings import noted, syntax_notes, to_number, without_networks
from gradina.request import Request


def number(text: str, kind: type = float) -> float:
    """A number, also with a decimal comma; raises ValueError."""
    return to_number(text.replace(",", "."), kind)


integer = partial(number, kind=int)


# A1111's key           field                conversion
FIELDS = (
    ("Steps",               "steps",             integer),
    ("CFG scale",           "guidance_scale",    number),
    ("Guidance scale",      "guidance_scale",    number),
    ("CFG rescale",         "guidance_rescale",  number),
    ("Guidance interval",   "guidance_interval", lambda text: tuple(map(float, text.split(" to ")))),
    ("Seed",                "seed",              integer),
    ("Denoising strength",  "strength",          number),
    ("Eta",                 "eta",               number),
    ("Eta DDIM",            "eta",               number),
    ("Rates",               "rates",             str),
    ("Reuse",               "reuse",             integer),
    ("Loras",               "loras",             json.loads),
    ("Concepts",            "concepts",          json.loads),
    ("Edit",                "edit",              json.loads),
)  # fmt: skip

# Keys, or their beginnings, that are not honoured, and why; the first match counts
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

# Keys that say nothing about the pixels, or are the default
IGNORED = (
    "Version", "Model", "Model hash", "VAE hash", "Init image hash", "User", "Batch size", "Batch pos", "RNG",
    "Created Date", "App", "Parser", "Downcast alphas_cumprod", "Pad conds", "SDCPP",
)  # fmt: skip
SIDES = ("Width", "Height")  # without a Size; not in KNOWN, since they are words of prompts, too
HARMLESS = {("Clip skip", "1"), ("ENSD", "0"), ("VAE Encoder", "Full"), ("VAE Decoder", "Full"), ("Tiling", "False")}

MODEL = (("Model hash", "hash"), ("Model", "name"), ("VAE", "vae"), ("VAE hash", "vae_hash"))  # key, that of a Record

KNOWN = {  # keys by their lower case
    key.lower(): key
    for key in ("Sampler", "Schedule type", "Scheduler", "Size", *IGNORED, *(key for key, *_ in FIELDS))
}


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n\r"]', text) else text


def _fields(pairs: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The fields of a request whose values are valid; notes name the others."""
    rows: list[tuple[str, dict[str, Any]]] = []
    fields: dict[str, Any] = {}
    for key, name, value_of in FIELDS:
        if key in pairs:
            with noted(key, pairs[key], notes):
                rows.append((key, {name: value_of(pairs[key])}))
    text = pairs.get("Size") or "x".join(pairs[side] for side in SIDES if side in pairs)
    if size := re.fullmatch(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})\s*(?:px)?", text.lower()):
        width, height = int(size[1]), int(size[2])
        rows.append(("Size", {"width": width - width % 8, "height": height - height % 8}))
        if width % 8 or height % 8:
            notes.append(f"Size: {size[0]} (cut to multiples of 8)")
    elif text:
        notes.append(f"Size: {short(text)} (cannot be used, left open)")
    for key, values in rows:
        with noted(key, pairs.get(key, text), notes):
            Request(**values)
            fields |= values
    return fields


def _is_by_gradina(pairs: Mapping[str, str]) -> bool:
    return pairs.get("Version", "").startswith("gradina")


def _not_honoured(pairs: Mapping[str, str]) -> list[str]:
    """A note for each reason, with all settings that it concerns."""
    reasons: dict[str, list[str]] = {}
    for key, value in pairs.items():
        ignored = key in SIDES or (key, value) in HARMLESS or (key == "VAE" and _is_by_gradina(pairs))
        if key.lower() not in KNOWN and not ignored:
            matches = (why for prefix, why in NOT_HONOURED if key.lower().startswith(prefix.lower()))
            why = next(matches, "unknown")
            reasons.setdefault(why, []).append(f"{short(key)}: {short(value)}" if value else short(key))
    return [f"{', '.join(settings)} (not honoured: {why})" for why, settings in reasons.items()]


def read_parameters(text: str) -> tuple[Request, list[str]]:
    """The request that an A1111 text describes, and a note on each setting that is not honoured.

    The web UI draws noise on the GPU unless the text says `RNG: CPU`, so that its pictures are not reproduced exactly.
    """
    parsed = parse(text, KNOWN)
    pairs, notes = parsed.pairs, list[str]()
    by_gradina = _is_by_gradina(pairs)
    names = pairs.get("Sampler", ""), pairs.get("Schedule type") or pairs.get("Scheduler", "")
    fields = _fields(pairs, notes) | sampler_and_schedule(*names, notes, default_schedule=not by_gradina)
    prompts = [parsed.prompt, parsed.negative_prompt]
    notes += _not_honoured(pairs)
    if "strength" in fields and any(key.startswith(("Hires", "First pass")) for key in pairs):
        del fields["strength"]  # of the second pass
    elif "strength" in fields:
        notes.append(
            "Denoising strength: drawn over another picture, which this text does not hold; give it as init_image"
        )
    if not by_gradina:
        notes += syntax_notes("\n".join(prompts))
        prompts = [without_networks(prompt) for prompt in prompts]
        if "Seed" in pairs and pairs.get("RNG", "").upper() != "CPU" and pairs.get("Version") != "ComfyUI":
            notes.append("Seed: its noise was drawn on the graphics card (no `RNG: CPU`), so the picture will differ")
    if not pairs:
        notes.append("no line of parameters (Steps: ...) was found: all of it is read as prompts")
    if parsed.rest:
        notes.append(f"{short(parsed.rest)} (lines after the parameters, left out)")
    return Request(prompt=prompts[0], negative_prompt=prompts[1], **fields), notes


def has_settings(text: str) -> bool:
    """Whether any text is A1111's."""
    return len(parse(text, KNOWN).pairs) >= 3


def model_of(text: str) -> dict[str, str] | None:
    """The name and the hash of the model, where an A1111 text has them."""
    pairs = parse(text, KNOWN).pairs
    rows = MODEL if _is_by_gradina(pairs) else MODEL[:2]  # autoencoders have no names in common with other programs
    return {name: pairs[key] for key, name in rows if pairs.get(key)} or None


def write_parameters(request: Request, model: dict[str, str] | None = None, version: str = "") -> str:
    """The A1111 text of one picture, without fields that are None.

    Raises RequestError for a request for several pictures; `request.alone(i)` is one of them.
    """
    if len(request.prompts) != 1:
        raise RequestError(
            f"prompt: this request draws {len(request.prompts)} pictures; describe one, request.alone(i)"
        )
    pairs: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": {sampler: name for name, sampler, _, _ in SAMPLERS}.get(str(request.sampler)),
        "Schedule type": SCHEDULES[request.schedule][0] if request.schedule else None,
        "CFG scale": request.guidance_scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}" if request.width and request.height else None,
        **{key: (model or {}).get(name) for key, name in MODEL},
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
