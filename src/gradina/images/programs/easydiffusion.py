"""Easy Diffusion: a PNG chunk for each setting, or all of them as one JSON object in UserComment."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gradina.images.programs.settings import Told, loaded

# Their key, ours
VALUES = {
    "num_inference_steps": "steps", "guidance_scale": "guidance_scale", "seed": "seed", "width": "width",
    "height": "height",
}  # fmt: skip
# Their key as it stands where they also write a text beside the picture
SHOWN = {
    "Prompt": "prompt", "Negative Prompt": "negative_prompt", "Seed": "seed", "Sampler": "sampler_name",
    "Width": "width", "Height": "height", "Steps": "num_inference_steps", "Guidance Scale": "guidance_scale",
    "Stable Diffusion model": "use_stable_diffusion_model", "VAE model": "use_vae_model",
    "LoRA model": "use_lora_model", "LoRA Strength": "lora_alpha", "Clip Skip": "clip_skip",
    "Embedding models": "use_embeddings_model", "Seamless Tiling": "tiling", "Prompt Strength": "prompt_strength",
    "Use Face Correction": "use_face_correction", "Use Upscaling": "use_upscale", "Upscale By": "upscale_amount",
    "ControlNet model": "use_controlnet_model", "ControlNet Filter": "control_filter_to_apply",
    "Hypernetwork model": "use_hypernetwork_model", "Hypernetwork Strength": "hypernetwork_strength",
    "Latent Upscaler Steps": "latent_upscaler_steps",
}  # fmt: skip
OWN = {"num_inference_steps", "use_stable_diffusion_model"}  # by which it is known
NOTHING: tuple[object, ...] = (None, "", "None", "none", "False", False, [], "[]")


def read(found: Mapping[str, str]) -> Told | None:
    """What Easy Diffusion wrote; None if it wrote nothing. Raises PictureError for what is damaged."""
    comment = found.get("UserComment", "")
    whole = comment.lstrip().startswith("{") and all(f'"{k}"' in comment or f'"{_shown(k)}"' in comment for k in OWN)
    told = loaded(comment, "Easy Diffusion", "UserComment") if whole else found
    data = {SHOWN.get(key, key): value for key, value in told.items()}
    if not data.keys() >= OWN:
        return None
    known = {*SHOWN.values()} - {"prompt", "negative_prompt", "sampler_name", "use_stable_diffusion_model"}
    loras, rates = _list(data.get("use_lora_model")), _list(data.get("lora_alpha"))
    read_here = {*VALUES, "use_lora_model", "lora_alpha"}
    return Told(
        prompt=data.get("prompt"),
        negative_prompt=data.get("negative_prompt"),
        values={ours: (theirs, data[theirs]) for theirs, ours in VALUES.items() if theirs in data},
        sampler=data.get("sampler_name"),
        model={"name": data["use_stable_diffusion_model"]},
        loras=[(name, rates[i] if i < len(rates) else 1) for i, name in enumerate(loras)],
        rest={key: data[key] for key in sorted(known - read_here) if data.get(key) not in NOTHING},
    )


def _shown(key: str) -> str:
    return next(shown for shown, name in SHOWN.items() if name == key)


def _list(value: object) -> list[object]:
    """One value or several, also where Python's list was written as a text."""
    if isinstance(value, str):
        value = re.findall(r"[^\[\]',\"]+", value) if value.startswith("[") or "," in value else [value]
    several = value if isinstance(value, list) else [value]
    return [one for one in several if one not in NOTHING and str(one).strip()]
