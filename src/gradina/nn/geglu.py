"""The gate of feed-forward layers, in one place to make it fast."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.bindings import Gate as OwnGate
from gradina.kernels.bindings import own_gate
from gradina.kernels.dispatch import is_inference, is_training, once_differentiable


class Gate(nn.Linear):
    """x (..., in) -> (..., h gate): a linear layer to what gates."""


def gated(both: Tensor) -> Tensor:
    """gelu(gate) · h for the halves of (..., h gate): (..., 2 · width) -> (..., width).

    Source: Shazeer, "GLU Variants Improve Transformer" (2002.05202), equation 6.
    """
    if is_inference(both) and (own := own_gate(both.dtype)):
        return own(both)
    if is_training(both) and (own := own_gate(both.dtype)):
        return cast(Tensor, Gated.apply(own, both))  # type: ignore[no-untyped-call]
    h, gate = both.chunk(2, dim=-1)
    return h * F.gelu(gate)


class Gated(torch.autograd.Function):
    """The same for training: forward and backward in C; only the input is saved."""

    @staticmethod
    def forward(ctx: Any, own: OwnGate, both: Tensor) -> Tensor:
        ctx.own = own
        ctx.save_for_backward(both)
        return own(both)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, ctx.own.back(*ctx.saved_tensors, grad_output)
