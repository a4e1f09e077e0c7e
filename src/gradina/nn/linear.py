"""Linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from gradina.nn import ops


class Linear(nn.Linear):
    """x (..., in) -> (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(self, x)
