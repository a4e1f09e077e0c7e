"""SwarmUI: JSON with `sui_image_params`, as `parameters` of a PNG or UserComment of a JPEG."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, repeat

from gradina.images.programs.settings import ProgramSettings, as_object, as_objects, load_object, pick, without

# SwarmUI's key: field of a Request
VALUES = {"steps": "steps", "cfgscale": "guidance_scale", "seed": "seed", "width": "width", "height": "height"}
READ = {
    *VALUES, "prompt", "negativeprompt", "model", "loras", "loraweights", "sampler", "scheduler", "comfyuisampler",
    "comfyuischeduler", "aspectratio", "swarm_version", "automaticvae", "images",
}  # fmt: skip


def read(texts: Mapping[str, str]) -> ProgramSettings | None:
    """The settings that SwarmUI wrote, None if it wrote none; raises PictureError for invalid ones."""
    for key in ("parameters", "UserComment"):
        text = texts.get(key, "")
        if text.lstrip().startswith("{") and '"sui_image_params"' in text:
            break
    else:
        return None
    metadata = load_object(text, "SwarmUI", key)
    data = as_object(metadata.get("sui_image_params"), "SwarmUI", "sui_image_params")
    main = next((row for row in as_objects(metadata.get("sui_models")) if row.get("param") == "model"), {})
    scales = chain(_list(data.get("loraweights")), repeat(1))
    return ProgramSettings(
        prompt=data.get("prompt"),
        negative_prompt=data.get("negativeprompt"),
        values=pick(data, VALUES),
        sampler=data.get("sampler") or data.get("comfyuisampler"),
        schedule=data.get("scheduler") or data.get("comfyuischeduler"),
        model={"name": data.get("model"), "hash": main.get("hash")},
        loras=list(zip(_list(data.get("loras")), scales, strict=False)),
        unsupported=without(data, READ),
    )


def _list(value: object) -> list[object]:
    """A list, or a text with commas as one."""
    return list(value.split(",")) if isinstance(value, str) and value else value if isinstance(value, list) else []
