"""Draw Things: JSON as UserComment in XMP, with short keys; the description beside it is for people."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gradina.images.programs.settings import Told, loaded

# Their key, ours
VALUES = {"steps": "steps", "scale": "guidance_scale", "seed": "seed"}
READ = {*VALUES, "c", "uc", "size", "sampler", "model", "lora", "v2", "profile"}
HARMLESS = {"strength": 1, "seed_mode": "", "clip_skip": 1, "shift": 1}


def read(found: Mapping[str, str]) -> Told | None:
    """What Draw Things wrote; None if it wrote nothing. Raises PictureError for what is damaged."""
    text = found.get("UserComment", "")
    if not text.lstrip().startswith("{") or not all(f'"{key}"' in text for key in ("c", "uc", "scale")):
        return None
    data = loaded(text, "Draw Things", "UserComment")
    size = re.findall(r"\d{1,6}", str(data.get("size", ""))[:40])
    rows = [row for row in data["lora"] if isinstance(row, dict)] if isinstance(data.get("lora"), list) else []
    return Told(
        prompt=data.get("c"),
        negative_prompt=data.get("uc"),
        values={ours: (theirs, data[theirs]) for theirs, ours in VALUES.items() if theirs in data}
        | {name: ("size", side) for name, side in zip(("width", "height"), size, strict=False)},
        sampler=data.get("sampler"),
        model={"name": data.get("model")},
        loras=[(row.get("model"), row.get("weight")) for row in rows],
        rest={k: v for k, v in data.items() if k not in READ and (k not in HARMLESS or v != HARMLESS[k])},
    )
