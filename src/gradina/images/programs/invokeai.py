"""InvokeAI: the chunks `invokeai_metadata` (since 3.0), `sd-metadata` (2.x) and `Dream` (before)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradina.errors import PictureError
from gradina.images.programs.settings import ProgramSettings, as_object, as_objects, load_object, pick, without

# InvokeAI's key: field of a Request
VALUES = {
    "steps": "steps", "cfg_scale": "guidance_scale", "cfg_rescale_multiplier": "guidance_rescale", "seed": "seed",
    "width": "width", "height": "height",
}  # fmt: skip
# Keys that are read elsewhere, or say nothing about the pixels
READ = {
    *VALUES, "positive_prompt", "negative_prompt", "scheduler", "model", "loras", "app_version", "prompt", "sampler",
}  # fmt: skip
HARMLESS = (
    ("generation_mode", "txt2img"), ("generation_mode", "sd_txt2img"),
    ("type", "txt2img"), ("rand_device", "cpu"), ("model", "stable diffusion"),
    ("app_id", "invoke-ai/InvokeAI"), ("orig_hash", ""),
)  # fmt: skip

# The options of `Dream`: key
DREAM = {
    "s": "steps", "steps": "steps", "S": "seed", "seed": "seed", "W": "width", "width": "width", "H": "height",
    "height": "height", "C": "cfg_scale", "cfg_scale": "cfg_scale", "A": "sampler", "m": "sampler",
    "sampler": "sampler",
}  # fmt: skip
_DREAM = re.compile(r'\s*"((?:[^"\\]|\\.)*)"(.*)', re.DOTALL)
_OPTION = re.compile(r"(?<!\S)(?:--(\w+)=?|-([A-Za-z]))\s*((?!-[A-Za-z-])\S*)")
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")


def read(texts: Mapping[str, str]) -> ProgramSettings | None:
    """The settings that InvokeAI wrote, None if it wrote none; raises PictureError for invalid ones."""
    if text := texts.get("invokeai_metadata"):
        return _metadata(load_object(text, "InvokeAI", "invokeai_metadata"))
    if text := texts.get("sd-metadata"):
        return _sd_metadata(load_object(text, "InvokeAI", "sd-metadata"))
    if text := texts.get("Dream") or texts.get("dream"):
        return _dream(text)
    if "invokeai_graph" in texts or "invokeai_workflow" in texts:
        raise PictureError("carries InvokeAI's graph without its settings; give a picture that has both")
    return None


def _name(model: object) -> object:
    """The name of a model or a LoRA: `name`, in older versions `model_name`, in the oldest the text itself."""
    return (model.get("name") or model.get("model_name")) if isinstance(model, dict) else model


def _metadata(data: Mapping[str, Any]) -> ProgramSettings:
    model, loras, rows = data.get("model"), data.get("loras"), as_objects(data.get("loras"))
    return ProgramSettings(
        prompt=data.get("positive_prompt"),
        negative_prompt=data.get("negative_prompt"),
        values=pick(data, VALUES),
        sampler=data.get("scheduler"),
        model={"name": _name(model), "hash": model.get("hash") if isinstance(model, dict) else None},
        loras=[(_name(row.get("model", row.get("lora"))), row.get("weight")) for row in rows],
        unsupported=without(data, READ, HARMLESS) | ({"loras": loras} if loras and not rows else {}),
    )


def _sd_metadata(data: Mapping[str, Any]) -> ProgramSettings:
    image = as_object(data.get("image"), "InvokeAI", "sd-metadata: image")
    prompts = image.get("prompt")
    if isinstance(prompts, list):
        prompts = ", ".join(str(row["prompt"]) for row in as_objects(prompts) if "prompt" in row)
    prompt, negative = _split(prompts) if isinstance(prompts, str) else (prompts, "")
    rest = without(data, ("image", "model_weights", "model_hash")) | image
    return ProgramSettings(
        prompt=prompt,
        negative_prompt=negative,
        values=pick(image, VALUES),
        sampler=image.get("sampler"),
        model={"name": data.get("model_weights"), "hash": data.get("model_hash")},
        unsupported=without(rest, READ, HARMLESS),
    )


def _split(prompt: str) -> tuple[str, str]:
    """Prompt and negative prompt, which is written in brackets."""
    negative = (part.strip(" ,") for part in _NEGATIVE.findall(prompt))
    rest = (part.strip(" ,") for part in _NEGATIVE.split(prompt)[::2])
    return ", ".join(filter(None, rest)), ", ".join(filter(None, negative))


def _dream(text: str) -> ProgramSettings:
    """The command line of the first versions: `"a red kite" -s 50 -S 77 -W 512 -H 768 -C 7.5 -A k_lms`."""
    quoted = _DREAM.match(text)
    words, line = (quoted[1], quoted[2]) if quoted else (re.split(r"\s-", text, maxsplit=1)[0], text)
    prompt, negative = _split(words.replace('\\"', '"'))
    found: list[tuple[str, str, str]] = _OPTION.findall(line)
    options = {DREAM.get(long or short, long or short): value for long, short, value in found}
    named = {f"-{key}" if key not in READ else key: value or "on" for key, value in options.items()}
    return ProgramSettings(
        prompt=prompt,
        negative_prompt=negative,
        values=pick(options, VALUES),
        sampler=options.get("sampler"),
        unsupported=without(named, READ, HARMLESS),
    )
