"""Where nothing learns, memory is used again: to have fresh memory cleared takes as long as to write a map into it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

Result = TypeVar("Result")

AT_ONCE = 5 * 2**18  # bytes of tokens that pass through a layer together: what is in between stays near the core
MMAP_THRESHOLD = -3  # as malloc.h names it: what is as large is taken from the system alone, and given back alone


def give_back() -> None:
    """Gives memory that was freed back to the system, where GNU's C library keeps it: some hundred MB for SD 1.5."""
    if sys.platform == "linux" and (trim := getattr(_library(), "malloc_trim", None)) is not None:
        trim(0)


def keep_nothing() -> None:
    """Has this process give back at once whatever of 1 MB or more is freed: a step then takes a third longer."""
    if sys.platform == "linux" and (adjust := getattr(_library(), "mallopt", None)) is not None:
        adjust(MMAP_THRESHOLD, 2**20)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def drawing(x: Tensor) -> bool:
    """Whether numbers are all that is wanted of x: on a CPU, without gradients, and nobody looks on."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not traced(x)


def learning(x: Tensor) -> bool:
    """Whether a gradient may be wanted of what becomes of x: on a CPU, and nobody looks on but who counts memory."""
    counted = isinstance(x, FakeTensor) and not torch.compiler.is_compiling()
    return x.device.type == "cpu" and torch.is_grad_enabled() and (counted or not traced(x))


def once(back: Callable[..., Result]) -> Callable[..., Result]:
    """A way back in C, which has none itself.

    Raises RuntimeError where one is asked for.
    """

    @wraps(back)
    def way(*given: Any) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "slopes of slopes were asked for (create_graph=True), and our kernels have none: "
                "set GRADINA_NATIVE=0 in the environment to learn without them"
            )
        return back(*given)

    return way


def traced(x: Tensor) -> bool:
    """Whether a compiler, a tracer, or what only stands for a tensor, must see operations of PyTorch."""
    stands_for_one = type(x) not in (Tensor, nn.Parameter)
    return stands_for_one or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def added(h: Tensor, x: Tensor) -> Tensor:
    """h + x, in the memory of h where nothing learns; h is of no further use."""
    if torch.is_grad_enabled() or h.dtype != torch.promote_types(h.dtype, x.dtype):
        return h + x
    return h.add_(x)


def silu(h: Tensor) -> Tensor:
    """h · sigmoid(h), in the memory of h where nothing learns; h is of no further use."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def by_rows(layer: Callable[[Tensor, Tensor], Tensor], h: Tensor, x: Tensor) -> Tensor:
    """layer(h, x) for a layer that treats each token of h and x (b, n, width) alone: the same, to rounding.

    Where something is drawn, some rows at a time.
    """
    rows = AT_ONCE // (x.shape[-1] * x.element_size())
    if x.shape[0] * x.shape[1] <= rows or not drawing(x):
        return layer(h, x)
    out = x.new_empty(x.shape)
    for to, *some in zip(*(torch.split(each.flatten(0, 1), rows) for each in (out, h, x)), strict=True):
        to.copy_(layer(*some))
    return out
