"""The names of what lies in a model's folder in the diffusers layout; nothing heavy is imported here."""

from __future__ import annotations

INDEX = "model_index.json"
PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipelineLegacy",
)  # fmt: skip
CARD = "README.md"
OURS = "gradina.json"  # what the layout has no place for: the defaults to draw with
PAIR = "clip"  # the folder of the contrastive pair that goes with a model
