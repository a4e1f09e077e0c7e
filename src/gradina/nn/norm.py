"""LayerNorm."""

from __future__ import annotations

from torch import Tensor, nn

from gradina.nn import ops


class LayerNorm(nn.LayerNorm):
    """Each token of (..., width) at mean 0 and variance 1, then scaled and shifted."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(self, x)
