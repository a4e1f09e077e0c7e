"""Fooocus: `parameters` and `fooocus_scheme` of a PNG, UserComment and MakerNote elsewhere: JSON, or A1111's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradina.images.programs.settings import Told, loaded

# Their key, ours
VALUES = {"steps": "steps", "guidance_scale": "guidance_scale", "seed": "seed"}
READ = {
    *VALUES, "prompt", "negative_prompt", "full_prompt", "full_negative_prompt", "base_model", "base_model_hash",
    "resolution", "sampler", "scheduler", "loras", "metadata_scheme", "version", "created_by", "performance",
}  # fmt: skip
HARMLESS = (("vae", "Default (model)"), ("refiner_model", "None"), ("styles", "[]"))
SCHEMES = ("fooocus", "a1111")


def read(found: Mapping[str, str]) -> Told | str | None:
    """What Fooocus wrote, A1111's text where it is that; None if it wrote nothing. Raises PictureError if damaged."""
    text = found.get("parameters") or found.get("UserComment", "")
    scheme = found.get("fooocus_scheme") or found.get("MakerNote", "")
    is_json = text.lstrip().startswith("{")
    if not text or not (scheme in SCHEMES or (is_json and '"metadata_scheme"' in text)):
        return None
    return _json(loaded(text, "Fooocus", "parameters")) if is_json or scheme == "fooocus" else text


def _json(data: Mapping[str, Any]) -> Told:
    size = re.findall(r"\d{1,6}", str(data.get("resolution", ""))[:40])
    sides = {name: ("resolution", side) for name, side in zip(("width", "height"), size, strict=False)}
    loras = data.get("loras")
    rows = [row for row in loras if isinstance(row, list) and len(row) > 1] if isinstance(loras, list) else []
    combined = [str(value).rsplit(" : ", 1) for key, value in data.items() if key.startswith("lora_combined_")]
    named = [(row[0], row[1]) for row in [*rows, *(row for row in combined if not rows and len(row) > 1)]]
    silent = {key for key, value in HARMLESS if data.get(key) == value}
    rest = {k: v for k, v in data.items() if k not in READ | silent and not k.startswith("lora_combined_")}
    return Told(
        prompt=data.get("prompt"),
        negative_prompt=data.get("negative_prompt"),
        values={ours: (theirs, data[theirs]) for theirs, ours in VALUES.items() if theirs in data} | sides,
        sampler=data.get("sampler"),
        schedule=data.get("scheduler"),
        model={"name": data.get("base_model"), "hash": data.get("base_model_hash")},
        loras=named,
        rest=rest,
    )
