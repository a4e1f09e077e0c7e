"""Pictures as tensors, and back: the one module here that needs torch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(picture: Image.Image) -> Tensor:
    """A picture as (3, h, w) in -1..1."""
    values = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32))
    return (values / 127.5 - 1).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, h, w) as a picture, clamped to -1..1."""
    values = (pixels.cpu() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
