"""Where nothing learns, memory is used again: to have fresh memory cleared takes as long as to write a map into it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 2048  # of tokens that pass through a layer together: what is in between stays near the core


def drawing(x: Tensor) -> bool:
    """Whether numbers are all that is wanted of x: on a CPU, without gradients, in no compiler and no tracer."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None


def added(h: Tensor, x: Tensor) -> Tensor:
    """h + x, in the memory of h where nothing learns; h is of no further use."""
    if torch.is_grad_enabled() or h.dtype != torch.result_type(h, x):
        return h + x
    return h.add_(x)


def silu(h: Tensor) -> Tensor:
    """h · sigmoid(h), in the memory of h where nothing learns; h is of no further use."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def by_rows(layer: Callable[[Tensor, Tensor], Tensor], h: Tensor, x: Tensor) -> Tensor:
    """layer(h, x) for a layer that treats each token of h and x (b, n, width) alone: the same, to rounding.

    Where something is drawn, some rows at a time.
    """
    if x.shape[0] * x.shape[1] <= ROWS or not drawing(x):
        return layer(h, x)
    out = x.new_empty(x.shape)
    for to, *some in zip(*(torch.split(each.flatten(0, 1), ROWS) for each in (out, h, x)), strict=True):
        to.copy_(layer(*some))
    return out
