"""SwarmUI: JSON with `sui_image_params`, as `parameters` of a PNG or UserComment of a JPEG."""

from __future__ import annotations

from collections.abc import Mapping

from gradina.images.programs.settings import Told, loaded, table

# Their key, ours
VALUES = {"steps": "steps", "cfgscale": "guidance_scale", "seed": "seed", "width": "width", "height": "height"}
READ = {
    *VALUES, "prompt", "negativeprompt", "model", "loras", "loraweights", "sampler", "scheduler", "comfyuisampler",
    "comfyuischeduler", "aspectratio", "swarm_version", "automaticvae", "images",
}  # fmt: skip


def read(found: Mapping[str, str]) -> Told | None:
    """What SwarmUI wrote; None if it wrote nothing. Raises PictureError for what is damaged."""
    for key in ("parameters", "UserComment"):
        text = found.get(key, "")
        if text.lstrip().startswith("{") and '"sui_image_params"' in text:
            break
    else:
        return None
    whole = loaded(text, "SwarmUI", key)
    data = table(whole.get("sui_image_params"), "SwarmUI", "sui_image_params")
    return Told(
        prompt=data.get("prompt"),
        negative_prompt=data.get("negativeprompt"),
        values={ours: (theirs, data[theirs]) for theirs, ours in VALUES.items() if theirs in data},
        sampler=data.get("sampler") or data.get("comfyuisampler"),
        schedule=data.get("scheduler") or data.get("comfyuischeduler"),
        model={"name": data.get("model"), "hash": _hash(whole.get("sui_models"))},
        loras=_loras(data.get("loras"), data.get("loraweights")),
        rest={key: value for key, value in data.items() if key not in READ},
    )


def _list(value: object) -> list[object]:
    """A list, also where it is written as one text."""
    return list(value.split(",")) if isinstance(value, str) and value else value if isinstance(value, list) else []


def _loras(names: object, scales: object) -> list[tuple[object, object]]:
    told = _list(scales)
    return [(name, told[i] if i < len(told) else 1) for i, name in enumerate(_list(names))]


def _hash(models: object) -> object:
    """The hash of the main model among all that took part."""
    rows = [row for row in models if isinstance(row, dict)] if isinstance(models, list) else []
    return next((row.get("hash") for row in rows if row.get("param") == "model"), None)
