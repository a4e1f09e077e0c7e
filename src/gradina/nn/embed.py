"""How a noise level enters a network: sines and cosines of the time step, then a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.linear import Linear


def sinusoidal(t: Tensor, width: int, period: float = 10_000.0) -> Tensor:
    """cos and sin of t (b,) at width/2 geometric frequencies from 1 to 1/period: (b, width), cosines first.

    Source: Vaswani et al., "Attention Is All You Need", section 3.5, in the order that Stable Diffusion uses.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(period) / half))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeMLP(nn.Module):
    """Time steps t (b,) -> embedding (b, inner), of sines and two linear layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.width = width
        self.proj_in = Linear(width, inner)
        self.proj_out = Linear(inner, inner)

    def forward(self, t: Tensor) -> Tensor:
        h = sinusoidal(t, self.width).to(self.proj_in.weight.dtype)
        return self.proj_out(F.silu(self.proj_in(h)))
