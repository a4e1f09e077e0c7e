"""The gate of feed-forward layers, in one place to make it fast."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.memory import drawing
from gradina.nn.native import own_gate


class Gate(nn.Linear):
    """x (..., in) -> (..., h gate): a linear layer to what gates."""


def gated(both: Tensor) -> Tensor:
    """gelu(gate) · h for the halves of (..., h gate): (..., 2 · width) -> (..., width).

    Source: Shazeer, "GLU Variants Improve Transformer" (2002.05202), equation 6.
    """
    if drawing(both) and (own := own_gate(both.dtype)):
        return own(both)
    h, gate = both.chunk(2, dim=-1)
    return h * F.gelu(gate)
