"""The transformer layer of CLIP's two towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.attention import Attention
from gradina.nn.linear import Linear
from gradina.nn.norm import LayerNorm

Activation = Literal["quick_gelu", "gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Block(nn.Module):
    """One transformer layer with the norms in front: (b, n, width) -> (b, n, width)."""

    def __init__(self, width: int, inner: int, heads: int, activation: Activation, causal: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.norm2 = LayerNorm(width)
        self.proj_in = Linear(width, inner)
        self.proj_out = Linear(inner, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.proj_out(self.activation(self.proj_in(self.norm2(x))))
