"""Metrics of picture quality, as functions of tensors."""

from __future__ import annotations

import math

from torch import Tensor


def psnr(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """PSNR in dB: 10 log10(peak² / mean squared difference). Raises ValueError where the shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"psnr: got pictures of shapes {tuple(a.shape)} and {tuple(b.shape)}, expected one shape")
    error = ((a.double() - b.double()) ** 2).mean().item()
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
