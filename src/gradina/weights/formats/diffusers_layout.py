"""What lies in a model's folder in the diffusers layout, and whether it is of our family; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
CARD = "README.md"
OURS = "gradina.json"  # what the layout has no place for: the defaults to draw with
PAIR = "clip"  # the folder of the contrastive pair that goes with a model

PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
READ = (*PARTS, "tokenizer", "scheduler")
UNREAD = ("safety_checker", "feature_extractor", "requires_safety_checker", "image_encoder")  # no picture needs them
FOREIGN = (  # parts that say by themselves that a pipeline is of another family
    "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "controlnet", "adapter", "motion_adapter",
    "prior", "decoder", "movq", "vqvae", "vqgan", "bert", "image_unet", "text_unet", "qformer", "depth_estimator",
    "low_res_scheduler", "image_noising_scheduler", "image_normalizer",
)  # fmt: skip
FAMILY = f"expected {', '.join(READ)} of Stable Diffusion 1.x or 2.x"


def is_model(folder: Path) -> bool:
    """Whether a folder is a model: it has an index, or the parts without one."""
    return (folder / INDEX).is_file() or all((folder / part / "config.json").is_file() for part in PARTS)


def refusal(folder: Path, index: Mapping[str, Any]) -> str:
    """Why a folder with that index ({}: none) is of another family, by its parts; "" for one of ours, however named."""
    listed = _listed(index)
    there = [part for part in (*PARTS, *FOREIGN) if (folder / part / "config.json").is_file()]
    name = str(index.get("_class_name", "pipeline"))[:80]
    foreign = [part for part in FOREIGN if part in (listed if index else there)]
    if foreign:
        return f"is a {name} with {' and '.join(foreign)}, another family; {FAMILY}"
    for part, kinds in PARTS.items():
        library, kind = listed.get(part, ("", ""))
        if library in ("diffusers", "transformers") and kind not in kinds:
            return f"is a {name} whose {part} is a {kind[:80]}, another family; {FAMILY}"
    lacking = [part for part in PARTS if part not in listed and part not in there]
    return f"is a {name} without {' and '.join(lacking)}; {FAMILY}" if lacking else ""


def unread(index: Mapping[str, Any]) -> list[str]:
    """The parts of an index that no picture here is drawn with, and that pictures elsewhere may need."""
    return [name for name in _listed(index) if name not in (*READ, *UNREAD)]


def _listed(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts that a pipeline has: library and class by name."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {
        name: (str(a), str(b))
        for name, (a, b) in pairs.items()
        if not name.startswith("_") and a is not None and b is not None
    }
