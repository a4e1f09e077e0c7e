"""Gradina: Stable Diffusion, whole, in Python.

import gradina
model = gradina.load()
for picture in gradina.generate(model, gradina.Request(prompt="a teddy bear", images=4)):
    picture.save(f"{picture.seed}.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradina.diffusion.step import Step
    from gradina.errors import GradinaError
    from gradina.images.picture import Picture
    from gradina.pipeline.generate import generate, steps
    from gradina.pipeline.load import load, push
    from gradina.pipeline.model import StableDiffusion
    from gradina.request import Request

__version__ = "0.1.0"

# Imported when first asked for: importing gradina costs nothing, and does not import torch.
_HOME = {
    "GradinaError": "gradina.errors",
    "Picture": "gradina.images.picture",
    "Request": "gradina.request",
    "StableDiffusion": "gradina.pipeline.model",
    "Step": "gradina.diffusion.step",
    "generate": "gradina.pipeline.generate",
    "load": "gradina.pipeline.load",
    "push": "gradina.pipeline.load",
    "steps": "gradina.pipeline.generate",
}
__all__ = [
    "GradinaError", "Picture", "Request", "StableDiffusion", "Step", "__version__", "generate", "load", "push", "steps",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gradina' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
