"""InvokeAI: the chunks `invokeai_metadata` (since 3.0), `sd-metadata` (2.x) and `Dream` (before)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradina.errors import PictureError
from gradina.images.programs.settings import Told, loaded, table

# Their key, ours
VALUES = {
    "steps": "steps", "cfg_scale": "guidance_scale", "cfg_rescale_multiplier": "guidance_rescale", "seed": "seed",
    "width": "width", "height": "height",
}  # fmt: skip
# What is read elsewhere, says nothing about the pixels, or is as it is here
READ = {
    *VALUES, "positive_prompt", "negative_prompt", "scheduler", "model", "loras", "app_version", "prompt", "sampler",
}  # fmt: skip
HARMLESS = (
    ("generation_mode", "txt2img"), ("generation_mode", "sd_txt2img"),
    ("type", "txt2img"), ("rand_device", "cpu"), ("model", "stable diffusion"),
    ("app_id", "invoke-ai/InvokeAI"), ("orig_hash", ""),
)  # fmt: skip

# How `Dream` gives its options
DREAM = {
    "s": "steps", "steps": "steps", "S": "seed", "seed": "seed", "W": "width", "width": "width", "H": "height",
    "height": "height", "C": "cfg_scale", "cfg_scale": "cfg_scale", "A": "sampler", "m": "sampler",
    "sampler": "sampler",
}  # fmt: skip
_DREAM = re.compile(r'\s*"((?:[^"\\]|\\.)*)"(.*)', re.DOTALL)
_OPTION = re.compile(r"(?<!\S)(?:--(\w+)=?|-([A-Za-z]))\s*((?!-[A-Za-z-])\S*)")
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")


def read(found: Mapping[str, str]) -> Told | None:
    """What InvokeAI wrote; None if it wrote nothing. Raises PictureError for what is damaged."""
    if text := found.get("invokeai_metadata"):
        return _metadata(loaded(text, "InvokeAI", "invokeai_metadata"))
    if text := found.get("sd-metadata"):
        return _sd_metadata(loaded(text, "InvokeAI", "sd-metadata"))
    if text := found.get("Dream") or found.get("dream"):
        return _dream(text)
    if "invokeai_graph" in found or "invokeai_workflow" in found:
        raise PictureError("carries InvokeAI's graph without its settings; give a picture that has both")
    return None


def _values(data: Mapping[str, Any]) -> dict[str, tuple[str, object]]:
    return {ours: (theirs, data[theirs]) for theirs, ours in VALUES.items() if theirs in data}


def _rest(data: Mapping[str, Any]) -> dict[str, object]:
    return {k: v for k, v in data.items() if k not in READ and not any((k, v) == pair for pair in HARMLESS)}


def _name(model: object) -> object:
    """The name of a model, or of a LoRA: newer shapes say `name`, older ones `model_name`, the oldest are a text."""
    return (model.get("name") or model.get("model_name")) if isinstance(model, dict) else model


def _metadata(data: Mapping[str, Any]) -> Told:
    model, loras = data.get("model"), data.get("loras")
    rows = [row for row in loras if isinstance(row, dict)] if isinstance(loras, list) else []
    return Told(
        prompt=data.get("positive_prompt"),
        negative_prompt=data.get("negative_prompt"),
        values=_values(data),
        sampler=data.get("scheduler"),
        model={"name": _name(model), "hash": model.get("hash") if isinstance(model, dict) else None},
        loras=[(_name(row.get("model", row.get("lora"))), row.get("weight")) for row in rows],
        rest=_rest(data) | ({"loras": loras} if loras and not rows else {}),
    )


def _sd_metadata(data: Mapping[str, Any]) -> Told:
    image = table(data.get("image"), "InvokeAI", "sd-metadata: image")
    prompts = image.get("prompt")
    if isinstance(prompts, list):
        prompts = ", ".join(str(row["prompt"]) for row in prompts if isinstance(row, dict) and "prompt" in row)
    prompt, negative = _split(prompts) if isinstance(prompts, str) else (prompts, "")
    told = ("image", "model_weights", "model_hash")
    return Told(
        prompt=prompt,
        negative_prompt=negative,
        values=_values(image),
        sampler=image.get("sampler"),
        model={"name": data.get("model_weights"), "hash": data.get("model_hash")},
        rest=_rest({k: v for k, v in data.items() if k not in told} | image),
    )


def _split(prompt: str) -> tuple[str, str]:
    """Prompt and negative prompt, which stands in brackets in it."""
    negative = (part.strip(" ,") for part in _NEGATIVE.findall(prompt))
    rest = (part.strip(" ,") for part in _NEGATIVE.split(prompt)[::2])
    return ", ".join(filter(None, rest)), ", ".join(filter(None, negative))


def _dream(text: str) -> Told:
    """A line of the first versions, as it was typed: `"a red kite" -s 50 -S 77 -W 512 -H 768 -C 7.5 -A k_lms`."""
    quoted = _DREAM.match(text)
    words, line = (quoted[1], quoted[2]) if quoted else (re.split(r"\s-", text, maxsplit=1)[0], text)
    prompt, negative = _split(words.replace('\\"', '"'))
    options = {DREAM.get(long or short, long or short): value for long, short, value in _OPTION.findall(line)}
    return Told(
        prompt=prompt,
        negative_prompt=negative,
        values=_values(options),
        sampler=options.get("sampler"),
        rest=_rest({f"-{key}" if key not in READ else key: value or "on" for key, value in options.items()}),
    )
