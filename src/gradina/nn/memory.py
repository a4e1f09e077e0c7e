"""Where nothing learns, memory is used again: to have fresh memory cleared takes as long as to write a map into it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.kernels.dispatch import is_inference

AT_ONCE = 5 * 2**18  # bytes of tokens that pass through a layer together: what is in between stays near the core
MMAP_THRESHOLD = -3  # as malloc.h names it: what is as large is taken from the system alone, and given back alone


def trim_heap() -> None:
    """Gives memory that was freed back to the system, where GNU's C library keeps it: some hundred MB for SD 1.5."""
    if sys.platform == "linux" and (trim := getattr(_library(), "malloc_trim", None)) is not None:
        trim(0)


def trim_threshold() -> None:
    """Has this process give back at once whatever of 1 MB or more is freed: a step then takes a third longer."""
    if sys.platform == "linux" and (adjust := getattr(_library(), "mallopt", None)) is not None:
        adjust(MMAP_THRESHOLD, 2**20)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def added(h: Tensor, x: Tensor) -> Tensor:
    """h + x, in the memory of h where nothing learns; h is of no further use."""
    if torch.is_grad_enabled() or h.dtype != torch.promote_types(h.dtype, x.dtype):
        return h + x
    return h.add_(x)


def silu(h: Tensor) -> Tensor:
    """h · sigmoid(h), in the memory of h where nothing learns; h is of no further use."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def chunked_over_tokens(layer: Callable[[Tensor, Tensor], Tensor], h: Tensor, x: Tensor) -> Tensor:
    """layer(h, x) for a layer that treats each token of h and x (b, n, width) alone: the same, to rounding.

    Where something is drawn, some rows at a time.
    """
    rows = AT_ONCE // (x.shape[-1] * x.element_size())
    if x.shape[0] * x.shape[1] <= rows or not is_inference(x):
        return layer(h, x)
    out = x.new_empty(x.shape)
    for to, *some in zip(*(torch.split(each.flatten(0, 1), rows) for each in (out, h, x)), strict=True):
        to.copy_(layer(*some))
    return out
