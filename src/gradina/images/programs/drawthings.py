"""Draw Things: JSON with short keys as UserComment in XMP."""

from __future__ import annotations

from collections.abc import Mapping

from gradina.images.programs.settings import ProgramSettings, as_objects, load_object, pick, pick_size, without

# Draw Things' key: field of a Request
VALUES = {"steps": "steps", "scale": "guidance_scale", "seed": "seed"}
READ = {*VALUES, "c", "uc", "size", "sampler", "model", "lora", "v2", "profile"}
HARMLESS = (("strength", 1), ("seed_mode", ""), ("clip_skip", 1), ("shift", 1))


def read(texts: Mapping[str, str]) -> ProgramSettings | None:
    """The settings that Draw Things wrote, None if it wrote none; raises PictureError for invalid ones."""
    text = texts.get("UserComment", "")
    if not text.lstrip().startswith("{") or not all(f'"{key}"' in text for key in ("c", "uc", "scale")):
        return None
    data = load_object(text, "Draw Things", "UserComment")
    return ProgramSettings(
        prompt=data.get("c"),
        negative_prompt=data.get("uc"),
        values=pick(data, VALUES) | pick_size(data, "size"),
        sampler=data.get("sampler"),
        model={"name": data.get("model")},
        loras=[(row.get("model"), row.get("weight")) for row in as_objects(data.get("lora"))],
        unsupported=without(data, READ, HARMLESS),
    )
