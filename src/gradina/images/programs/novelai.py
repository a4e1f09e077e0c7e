"""NovelAI: the chunks `Description`, `Source` and `Comment`, or the same hidden in the alpha channel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradina.errors import PictureError
from gradina.images.programs.settings import ProgramSettings, as_objects, load_object, pick, without

# NovelAI's key: field of a Request
VALUES = {
    "steps": "steps", "scale": "guidance_scale", "cfg_rescale": "guidance_rescale", "seed": "seed", "width": "width",
    "height": "height",
}  # fmt: skip
READ = {
    *VALUES, "prompt", "uc", "sampler", "noise_schedule", "v4_prompt", "v4_negative_prompt", "signed_hash", "version",
    "request_type", "params_version", "n_samples", "legacy", "legacy_v3_extend", "legacy_uc", "add_original_image",
    "prefer_brownian", "extra_noise_seed", "strength", "noise",
}  # fmt: skip
HARMLESS = (
    ("uncond_scale", 1), ("dynamic_thresholding_mimic_scale", 10), ("dynamic_thresholding_percentile", 0.999),
)  # fmt: skip
MODEL_NOTE = "NovelAI draws with models and noise of its own: the picture will be another"


def read(texts: Mapping[str, str]) -> ProgramSettings | None:
    """The settings that NovelAI wrote, None if it wrote none; raises PictureError for invalid ones."""
    source = texts.get("Source", "")
    if not texts.get("Software", "").startswith("NovelAI") and not source.startswith(("NovelAI", "Stable Diffusion")):
        return None
    if "Comment" not in texts:
        raise PictureError("carries NovelAI's marks without its settings (Comment); give another copy of the file")
    data = load_object(texts["Comment"], "NovelAI", "Comment")
    prompt = data.get("prompt") or _captions(data, "v4_prompt").get("base_caption") or texts.get("Description", "")
    negative = data.get("uc") or _captions(data, "v4_negative_prompt").get("base_caption")
    named = re.fullmatch(r"(.*?)\s+([0-9A-F]{8})", source)
    img2img = ("strength", "noise") if data.get("request_type") == "Img2ImgRequest" else ()
    braces = "prompt: weights such as {word} or 1.2::word:: are read as plain words"
    weighted = any(isinstance(text, str) and re.search(r"[{}]|\d::", text) for text in (prompt, negative))
    rows = as_objects(_captions(data, "v4_prompt").get("char_captions"))
    characters = [text for row in rows if isinstance(text := row.get("char_caption"), str)]  # of version 4, not read
    rest = without(data, READ, HARMLESS) | {key: data.get(key) for key in img2img}
    return ProgramSettings(
        prompt=prompt,
        negative_prompt=negative,
        values=pick(data, VALUES),
        sampler=data.get("sampler"),
        schedule=data.get("noise_schedule"),
        model={"name": named[1] if named else source, "hash": named[2] if named else None},
        unsupported=rest | {"characters": "; ".join(characters)},
        notes=[*([braces] if weighted else []), MODEL_NOTE],
        size_of_picture=True,
    )


def _captions(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    prompt = data.get(key)
    caption = prompt.get("caption") if isinstance(prompt, dict) else None
    return caption if isinstance(caption, dict) else {}
