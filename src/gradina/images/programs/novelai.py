"""NovelAI: the chunks `Description`, `Source` and `Comment`, or the same as JSON in the lowest bits of the alpha
channel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradina.errors import PictureError
from gradina.images.programs.settings import Told, loaded

# Their key, ours
VALUES = {
    "steps": "steps", "scale": "guidance_scale", "cfg_rescale": "guidance_rescale", "seed": "seed", "width": "width",
    "height": "height",
}  # fmt: skip
READ = {
    *VALUES, "prompt", "uc", "sampler", "noise_schedule", "v4_prompt", "v4_negative_prompt", "signed_hash", "version",
    "request_type", "params_version", "n_samples", "legacy", "legacy_v3_extend", "legacy_uc", "add_original_image",
    "prefer_brownian", "extra_noise_seed", "strength", "noise",
}  # fmt: skip
HARMLESS = {"uncond_scale": 1, "dynamic_thresholding_mimic_scale": 10, "dynamic_thresholding_percentile": 0.999}
OWN = "NovelAI draws with models and noise of its own: the picture will be another"


def read(found: Mapping[str, str]) -> Told | None:
    """What NovelAI wrote; None if it wrote nothing. Raises PictureError for what is damaged."""
    source = found.get("Source", "")
    if not found.get("Software", "").startswith("NovelAI") and not source.startswith(("NovelAI", "Stable Diffusion")):
        return None
    if "Comment" not in found:
        raise PictureError("carries NovelAI's marks without its settings (Comment); give another copy of the file")
    data = loaded(found["Comment"], "NovelAI", "Comment")
    prompt = data.get("prompt") or _caption(data, "v4_prompt") or found.get("Description", "")
    negative = data.get("uc") or _caption(data, "v4_negative_prompt")
    named = re.fullmatch(r"(.*?)\s+([0-9A-F]{8})", source)
    over = ("strength", "noise") if data.get("request_type") == "Img2ImgRequest" else ()
    rest = {k: v for k, v in data.items() if k not in READ and (k not in HARMLESS or v != HARMLESS[k])}
    braces = "prompt: weights such as {word} or 1.2::word:: are read as plain words"
    weighted = any(isinstance(text, str) and re.search(r"[{}]|\d::", text) for text in (prompt, negative))
    return Told(
        prompt=prompt,
        negative_prompt=negative,
        values={ours: (theirs, data[theirs]) for theirs, ours in VALUES.items() if theirs in data},
        sampler=data.get("sampler"),
        schedule=data.get("noise_schedule"),
        model={"name": named[1] if named else source, "hash": named[2] if named else None},
        rest=rest | {key: data.get(key) for key in over} | _people(data),
        notes=[*([braces] if weighted else []), OWN],
        as_large_as_drawn=True,
    )


def _captions(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    told = data.get(key)
    caption = told.get("caption") if isinstance(told, dict) else None
    return caption if isinstance(caption, dict) else {}


def _caption(data: Mapping[str, Any], key: str) -> object:
    return _captions(data, key).get("base_caption")


def _people(data: Mapping[str, Any]) -> dict[str, object]:
    """What version 4 says of each character, which is not a part of the prompt here."""
    told = _captions(data, "v4_prompt").get("char_captions")
    rows = told if isinstance(told, list) else []
    said = [row.get("char_caption") for row in rows if isinstance(row, dict)]
    return {"characters": "; ".join(text for text in said if isinstance(text, str))}
