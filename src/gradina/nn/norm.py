"""LayerNorm and BatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn import ops


class LayerNorm(nn.LayerNorm):
    """Each token of (..., width) at mean 0 and variance 1, then scaled and shifted."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(self, x)


class BatchNorm(nn.Module):
    """Each channel of (b, width, h, w) at mean 0 and variance 1: of the batch in training, else of its running moments.

    torch.nn's own also counts batches, in an integer that nothing reads and half precision could not hold.
    Source: Ioffe & Szegedy, "Batch Normalization" (1502.03167), algorithms 1 and 2.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training)
