"""The model families that Stable Diffusion 1.x and 2.x come in, as one table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradina.models.clip import TextConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig


@dataclass(frozen=True)
class Family:
    """The shapes of a published model, and what it was trained to do."""

    unet: UNetConfig
    text: TextConfig
    prediction: str  # eps or v
    size: int  # pixels
    pad: int | None  # id that fills a prompt up; None: the end-of-text token
    vae: VAEConfig = VAEConfig()  # noqa: RUF009  (frozen)


_UNET1, _TEXT1 = UNetConfig(), TextConfig()
_UNET2 = replace(_UNET1, heads=(5, 10, 20, 20), context=1024, linear=True)
_TEXT2 = replace(_TEXT1, width=1024, inner=4096, layers=23, heads=16, activation="gelu")  # of 24: the penultimate

# Source: CompVis `v1-inference.yaml`, Stability-AI `v2-inference-v.yaml` and the inpainting configs beside them.
FAMILIES: dict[str, Family] = {
    #                              U-Net                                 text     predicts pixels pad
    "sd1":            Family(_UNET1,                                 _TEXT1,  "eps",   512,   None),
    "sd1-inpainting": Family(replace(_UNET1, channels=9),            _TEXT1,  "eps",   512,   None),
    "sd2-base":       Family(_UNET2,                                 _TEXT2,  "eps",   512,   0),
    "sd2":            Family(replace(_UNET2, size=96),               _TEXT2,  "v",     768,   0),
    "sd2-inpainting": Family(replace(_UNET2, channels=9),            _TEXT2,  "eps",   512,   0),
}  # fmt: skip
