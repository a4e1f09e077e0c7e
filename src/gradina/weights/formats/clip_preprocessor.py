"""How a picture becomes what an image tower reads: the settings of a CLIPImageProcessor, in both directions."""

from __future__ import annotations

from typing import Any, TypeAlias

from PIL.Image import Resampling

from gradina.errors import WeightsError
from gradina.weights.json_config import Json, check_fixed, shown

Rgb: TypeAlias = tuple[float, float, float]

PIXELS_FIXED: Json = {
    "do_center_crop": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255,
}  # fmt: skip

OPENAI_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)  # of the colours that OpenAI's CLIP was trained on, in 0..1
OPENAI_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


def pixels_from(json: Json, side: int) -> tuple[Rgb, Rgb, Resampling]:
    """Mean, standard deviation and filter of a CLIPImageProcessor that feeds a tower of pictures `side` wide."""
    check_fixed("picture", json, PIXELS_FIXED)
    for key, names in (("size", {"shortest_edge"}), ("crop_size", {"height", "width"})):
        got = json.get(key, side)
        if got not in (side, dict.fromkeys(names, side)):
            raise WeightsError(
                f"picture config: {key} is {shown(got)}, which is not built here (expected {side}, the tower's)"
            )
    mean, std = (
        tuple(map(float, json.get(key, default)))
        for key, default in (("image_mean", OPENAI_MEAN), ("image_std", OPENAI_STD))
    )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise WeightsError(f"picture config: image_mean is {mean}, image_std {std}; expected three colours, std over 0")
    return mean, std, Resampling(json.get("resample", Resampling.BICUBIC))


def pixels_to(side: int, mean: Rgb, std: Rgb, resample: Resampling) -> dict[str, Any]:
    """preprocessor_config.json for transformers."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": int(resample),
        "do_convert_rgb": True,
        **PIXELS_FIXED,
    }
