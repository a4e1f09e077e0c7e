"""What our kernels compute, asked for in tensors: on a CPU, there and where it says so back, without autograd."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gradina.nn.kernel import Kernel, kernel, library

LANES = 16  # numbers of single precision that are multiplied at once

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

    Softmax makes many of them, and their slopes, and a core takes 50 times as long for each.
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
        _call(self.library.gated, both, out, *_rows(out))
        return out

    def back(self, both: Tensor, slope: Tensor) -> Tensor:
        """From the slope of what came out, (..., width), to that of what went in."""
        both, slope = both.contiguous(), slope.contiguous()
        out = torch.empty_like(both)
        _call(self.library.gated_back, both, slope, out, *_rows(slope))
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
        _call(self.library.softmax, x, out, *_rows(x), scale)
        return out

    def back(self, shares: Tensor, slope: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
        """From what came out, and its slope, to the slope of x, which may lie where that slope did."""
        slope = slope.contiguous()
        out = torch.empty_like(shares) if out is None else out
        _call(self.library.softmax_back, shares, slope, out, *_rows(shares), scale)
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
    _call(library.nearest, x, out, x.numel())
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
        _call(self.library.moments, x, *_places(x), norm.num_groups, *given, norm.eps, *made)
        return made

    def scaled(self, x: Tensor, scale: Tensor, offset: Tensor, active: bool) -> Tensor:
        """scale · x + offset, and its SiLU if that is wanted."""
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        _call(self.library.scaled, x, out, *_places(x), scale, offset, active)
        return out

    def back(
        self, x: Tensor, moments: Tensor, weight: Tensor, slope: Tensor, groups: int, active: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From the slope of `scaled`, (b, c, h, w), to those of x, weight (c,), bias (c,) and shift (b, c)."""
        x, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, slope))
        of_x, of_shift = torch.empty_like(x), torch.empty(x.shape[:2])
        of_weight, of_bias = torch.empty(2, x.shape[1])
        known = (*moments, weight.float())
        _call(
            self.library.moments_back, x, slope, *_places(x), groups, active, *known, of_x, of_weight, of_bias, of_shift
        )
        return of_x, of_weight, of_bias, of_shift

    def rows(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """norm(x) for x (..., width) of the type of the norm's weights, which it has to have."""
        x = x.contiguous()
        out = torch.empty_like(x)
        _call(self.library.rows_scaled, x, out, *_rows(x), norm.weight, norm.bias, norm.eps)
        return out


def own_norm(dtype: torch.dtype) -> Norm | None:
    """Our own norms; None where they cannot be had."""
    found = _library(dtype)
    return Norm(found) if found else None


class Convolution:
    """3x3 convolutions, padded by one, of maps.

    By tiles where the processor has them, and elsewhere by a quarter of the multiplications.
    """

    def __init__(self, library: ctypes.CDLL, tiles: bool) -> None:
        self.library, self.tiles = library, tiles

    def order(self, weight: Tensor, turned: bool = False) -> Tensor:
        """Weights (out, in, 3, 3) as they are asked for; numbers of no use are zero.

        Sixteen that come out at a time: (out/16, in, 9, 16). Or in tiles, 32 by 32: (out/32, in/32, 9, 2, 16, 16, 2).
        Turned, they are those with which slopes go back, from what came out to what went in.
        """
        last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
        weight, (out, channels) = weight if last else weight.contiguous(), weight.shape[:2]
        out, channels = (channels, out) if turned else (out, channels)
        by_tiles = (-(-out // (2 * LANES)), -(-channels // (2 * LANES)), 9, 2, LANES, LANES, 2)
        made = weight.new_empty(by_tiles if self.tiles else (-(-out // LANES), channels, 9, LANES))
        _call(self.library.order, weight, made, channels, out, last, turned)
        return made

    def __call__(
        self, x: Tensor, ordered: Tensor, out: int, bias: Tensor | None, beside: Tensor | None = None, grows: int = 1
    ) -> Tensor:
        """The convolution of x (b, in, h, w), doubled in height and width if it grows by 2, plus what is beside it."""
        b, channels, height, width = x.shape
        size = (grows * height, grows * width)
        last = torch.channels_last
        x, beside = x.contiguous(memory_format=last), None if beside is None else beside.contiguous(memory_format=last)
        made = torch.empty(b, out, *size, dtype=x.dtype, memory_format=last)
        _call(self.library.convolved, x, ordered, bias, beside, made, b, *size, channels, out, grows)
        return made


def ordinary(ordered: Tensor, out: int, channels: int) -> Tensor:
    """The weights (out, channels, 3, 3) that `Convolution.order` was given."""
    if ordered.dim() == 7:
        outs, ins = (2 * LANES * count for count in ordered.shape[:2])
        weight = ordered.permute(0, 3, 5, 1, 4, 6, 2).reshape(outs, ins, 3, 3)
    else:
        weight = ordered.permute(0, 3, 1, 2).reshape(-1, channels, 3, 3)
    return weight[:out, :channels]


def own_convolution(dtype: torch.dtype) -> Convolution | None:
    """Our own convolution; None where it cannot be had."""
    own = kernel(dtype)
    found = library(own.flags) if own else None
    return Convolution(found, own.tiles) if own and found else None


class Product:
    """Linear layers. The halves of what comes out may be a gate's: gelu(second) · first."""

    def __init__(self, library: ctypes.CDLL, tiles: bool) -> None:
        self.library, self.tiles = library, tiles

    def order(self, weight: Tensor, halves: bool = False) -> Tensor:
        """Weights (out, in) as they are asked for; numbers of no use are zero.

        Sixty-four that come out at a time: (out/64, in, 64), with `halves` (out/64, in, 2, 32). Or in tiles, 32 by 32:
        (out/32, in/32, 2, 16, 16, 2), where the first 2 may be the halves.
        """
        weight, (out, width) = weight.contiguous(), weight.shape
        wide, deep = (2 * LANES, -(-width // (2 * LANES))) if self.tiles else (4 * LANES, width)
        panels = -(-(out // 2) // (wide // 2)) if halves else -(-out // wide)
        each = (2, LANES, LANES, 2) if self.tiles else (2, wide // 2) if halves else (wide,)
        made = weight.new_empty(panels, deep, *each)
        _call(self.library.order_rows, weight, made, width, out, halves)
        return made

    def __call__(
        self,
        x: Tensor,
        ordered: Tensor,
        out: int,
        bias: Tensor | None,
        beside: Tensor | None = None,
        halves: bool = False,
        gates: bool = False,
    ) -> Tensor:
        """x (..., in) -> (..., out), plus what is beside it; where its halves are to gate, (..., out / 2)."""
        x, beside = x.contiguous(), None if beside is None else beside.contiguous()
        made = x.new_empty(*x.shape[:-1], out // 2 if gates else out)
        _call(self.library.multiplied, x, ordered, bias, beside, made, *_rows(x), out, halves, gates)
        return made


def ordinary_rows(ordered: Tensor, out: int, width: int, halves: bool = False) -> Tensor:
    """The weights (out, width) that `Product.order` was given."""
    if ordered.dim() < 6:
        rows = ordered.permute(2, 0, 3, 1) if halves else ordered.permute(0, 2, 1)
    else:
        rows = ordered.permute((2, 0, 4, 1, 3, 5) if halves else (0, 2, 4, 1, 3, 5)).flatten(3)
    if halves:
        return rows.reshape(2, -1, rows.shape[-1])[:, : out // 2, :width].flatten(0, 1)
    return rows.reshape(-1, rows.shape[-1])[:out, :width]


def own_product(dtype: torch.dtype, gates: bool = False) -> Product | None:
    """Our own product of linear layers, or of those that gate; None where it cannot be had, or is not the quickest."""
    own = kernel(dtype)
    quick = own is not None and (own.tiles or (gates and own.dtype == torch.float32))
    found = library(own.flags) if own and quick else None
    return Product(found, own.tiles) if own and found else None


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
        _call(library.attention, *views, out, b, heads, n, m, d)
        return out.transpose(1, 2)

    return attend


def _rows(x: Tensor) -> tuple[int, int]:
    """How many rows x (..., width) has, and their width."""
    width = x.shape[-1]
    return x.numel() // max(1, width), width


def _places(x: Tensor) -> tuple[int, int, int]:
    """How many maps x (b, c, h, w) has, of how many places and channels."""
    b, channels, height, width = x.shape
    return b, height * width, channels


def _call(function: Any, *given: Any) -> None:
    """Calls a function of a library; what only stands for tensors, as memory is counted, comes out as it is."""
    if not any(isinstance(x, FakeTensor) for x in given) and function(*map(_as_c_has_it, given)):
        raise MemoryError(f"{function.__name__}: there is no memory left")


def _as_c_has_it(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, float):
        return ctypes.c_double(x)
    return ctypes.c_int64(x) if isinstance(x, int) else x
