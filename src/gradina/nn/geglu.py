"""The gated feed-forward layer of the U-Net's transformers."""

from __future__ import annotations

from torch import Tensor, nn

from gradina.nn.linear import Linear
from gradina.nn.ops import geglu_ffn


class GatedLinear(Linear):
    """x (..., in) -> (..., h gate), the two halves of a GEGLU."""


class GEGLU(nn.Module):
    """A gated feed-forward layer and a residual, (b, n, width) -> (b, n, width). Source: Shazeer, 2002.05202, eq. 6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = GatedLinear(width, 8 * width)
        self.proj_out = Linear(4 * width, width)

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return geglu_ffn(self.proj_in, self.proj_out, h, residual)
