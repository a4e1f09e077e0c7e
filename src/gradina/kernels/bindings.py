"""What our kernels compute, asked for in tensors on a CPU, without autograd: there, and where a class has it, back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gradina.kernels.build import Kernel, kernel, library

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Halves = Callable[[Tensor], Tensor]


@cache
def compiled(kernel: Kernel) -> Attend | None:
    """softmax(q kᵀ / √d) v for tensors on a CPU, without gradients; None where it cannot be had.

    q is (b, heads, n, d), k and v are (b, heads, m, d), with d up to 512.
    """
    found = library(kernel.flags)
    return _attend(found) if found else None


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    own = kernel(dtype)
    return library(own.flags) if own else None


@contextmanager
def flushed() -> Iterator[None]:
    """Meanwhile numbers too small to be normal are 0, in all threads, where our kernels can be had.

    Softmax and its backward make many of them, and a core takes 50 times as long for each.
    """
    found = _library(torch.float32)
    before = found.flush(ctypes.c_int64(True)) if found else 0
    try:
        yield
    finally:
        if found:
            found.flush(ctypes.c_int64(before))


class Gate:
    """gelu(gate) · h for the halves of (..., h gate)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __call__(self, both: Tensor) -> Tensor:
        """(..., 2 · width) -> (..., width)"""
        both = both.contiguous()
        out = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        call(self.library.gated, both, out, *rows(out))
        return out

    def back(self, both: Tensor, grad_output: Tensor) -> Tensor:
        """From the gradient of the output, (..., width), to that of the input."""
        both, grad_output = both.contiguous(), grad_output.contiguous()
        out = torch.empty_like(both)
        call(self.library.gated_back, both, grad_output, out, *rows(grad_output))
        return out


def own_gate(dtype: torch.dtype) -> Gate | None:
    """Our own gate; None where it cannot be had."""
    found = _library(dtype)
    return Gate(found) if found else None


class Softmax:
    """softmax(scale · x) over the last dimension."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __call__(self, x: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
        """As it is written; what comes out may lie where x did."""
        x = x.contiguous()
        out = torch.empty_like(x) if out is None else out
        call(self.library.softmax, x, out, *rows(x), scale)
        return out

    def back(self, probs: Tensor, grad_output: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
        """From the output and its gradient to the gradient of x, which may be written in place of the former."""
        grad_output = grad_output.contiguous()
        out = torch.empty_like(probs) if out is None else out
        call(self.library.softmax_back, probs, grad_output, out, *rows(probs), scale)
        return out


def own_softmax(dtype: torch.dtype) -> Softmax | None:
    """Our own softmax; None where it cannot be had."""
    found = _library(dtype)
    return Softmax(found) if found else None


def own_halves() -> Halves | None:
    """float16 (contiguous, on a CPU) -> the nearest bfloat16, as PyTorch rounds; None where it cannot be had."""
    found = _library(torch.bfloat16)
    return partial(_nearest, found) if found else None


def _nearest(library: ctypes.CDLL, x: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=torch.bfloat16)
    call(library.nearest, x, out, x.numel())
    return out


class Norm:
    """GroupNorm of maps (b, c, h, w) whose channels lie last in memory, and LayerNorm."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def moments(self, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> Tensor:
        """Scale, offset, steepness and centre (4, b, c) of norm(x + shift), for a shift (b, c).

        It is scale · x + offset, and without the norm's weight and bias steepness · (x - centre).
        """
        made = torch.empty(4, *x.shape[:2])
        given = (None if t is None else t.detach().float().contiguous() for t in (shift, norm.weight, norm.bias))
        call(self.library.moments, x, *places(x), norm.num_groups, *given, norm.eps, *made)
        return made

    def scaled(self, x: Tensor, scale: Tensor, offset: Tensor, active: bool) -> Tensor:
        """scale · x + offset, and its SiLU if that is wanted."""
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        call(self.library.scaled, x, out, *places(x), scale, offset, active)
        return out

    def back(
        self, x: Tensor, moments: Tensor, weight: Tensor, grad_output: Tensor, groups: int, active: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From the gradient of `scaled`, (b, c, h, w), to those of x, weight (c,), bias (c,) and shift (b, c)."""
        x, grad_output = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad_output))
        grad_x, grad_shift = torch.empty_like(x), torch.empty(x.shape[:2])
        grad_weight, grad_bias = torch.empty(2, x.shape[1])
        known = (*moments, weight.float())
        call(
            self.library.moments_back,
            x,
            grad_output,
            *places(x),
            groups,
            active,
            *known,
            grad_x,
            grad_weight,
            grad_bias,
            grad_shift,
        )
        return grad_x, grad_weight, grad_bias, grad_shift

    def rows(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """norm(x) for x (..., width) of the type of the norm's weights, which it has to have."""
        x = x.contiguous()
        out = torch.empty_like(x)
        call(self.library.rows_scaled, x, out, *rows(x), norm.weight, norm.bias, norm.eps)
        return out


def own_norm(dtype: torch.dtype) -> Norm | None:
    """Our own norms; None where they cannot be had."""
    found = _library(dtype)
    return Norm(found) if found else None


def own_attention(dtype: torch.dtype) -> Attend | None:
    """The quickest on this processor, for what it `suits`; None where there is none."""
    own = kernel(dtype)
    return compiled(own) if own else None


def _attend(library: ctypes.CDLL) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        (b, heads, n, d), m = q.shape, k.shape[2]
        out = q.new_empty(b, n, heads, d)
        views = [x for t in (q, k, v) for x in (t, (ctypes.c_int64 * 3)(*t.stride()[:3]))]
        call(library.attention, *views, out, b, heads, n, m, d)
        return out.transpose(1, 2)

    return attend


def rows(x: Tensor) -> tuple[int, int]:
    """How many rows x (..., width) has, and their width."""
    width = x.shape[-1]
    return x.numel() // max(1, width), width


def places(x: Tensor) -> tuple[int, int, int]:
    """How many maps x (b, c, h, w) has, of how many places and channels."""
    b, channels, height, width = x.shape
    return b, height * width, channels


def call(function: Any, *given: Any) -> None:
    """Calls a function of a library; what only stands for tensors, as memory is counted, comes out as it is."""
    if not any(isinstance(x, FakeTensor) for x in given) and function(*map(_as_c_has_it, given)):
        raise MemoryError(f"{function.__name__}: there is no memory left")


def _as_c_has_it(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, float):
        return ctypes.c_double(x)
    return ctypes.c_int64(x) if isinstance(x, int) else x
