"""Easy Diffusion: a PNG chunk for each setting, or all of them as one JSON object in UserComment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, repeat

from gradina.images.programs.settings import ProgramSettings, load_object, pick

# Easy Diffusion's key: field of a Request
VALUES = {
    "num_inference_steps": "steps", "guidance_scale": "guidance_scale", "seed": "seed", "width": "width",
    "height": "height",
}  # fmt: skip
# The label in its text files: its key
LABELS = {
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
READ = {
    *VALUES, "prompt", "negative_prompt", "sampler_name", "use_stable_diffusion_model", "use_lora_model", "lora_alpha",
}  # fmt: skip
REQUIRED = {"num_inference_steps", "use_stable_diffusion_model"}
EMPTY: tuple[object, ...] = (None, "", "None", "none", "False", False, [], "[]")


def read(texts: Mapping[str, str]) -> ProgramSettings | None:
    """The settings that Easy Diffusion wrote, None if it wrote none; raises PictureError for invalid ones."""
    comment = texts.get("UserComment", "")
    labels = {key: label for label, key in LABELS.items()}
    is_json = comment.lstrip().startswith("{")
    is_json &= all(f'"{key}"' in comment or f'"{labels[key]}"' in comment for key in REQUIRED)
    settings = load_object(comment, "Easy Diffusion", "UserComment") if is_json else texts
    data = {LABELS.get(key, key): value for key, value in settings.items()}
    if not data.keys() >= REQUIRED:
        return None
    scales = chain(_list(data.get("lora_alpha")), repeat(1))
    return ProgramSettings(
        prompt=data.get("prompt"),
        negative_prompt=data.get("negative_prompt"),
        values=pick(data, VALUES),
        sampler=data.get("sampler_name"),
        model={"name": data["use_stable_diffusion_model"]},
        loras=list(zip(_list(data.get("use_lora_model")), scales, strict=False)),
        unsupported={key: data[key] for key in sorted({*LABELS.values()} - READ) if data.get(key) not in EMPTY},
    )


def _list(value: object) -> list[object]:
    """The values of a setting, which is one value, a list, or a list as text."""
    if isinstance(value, str):
        value = re.findall(r"[^\[\]',\"]+", value) if value.startswith("[") or "," in value else [value]
    several = value if isinstance(value, list) else [value]
    return [one for one in several if one not in EMPTY and str(one).strip()]
