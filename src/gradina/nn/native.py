"""What our kernels compute, asked for in tensors: on a CPU, without gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from gradina.nn.kernel import Kernel, kernel, library

LANES = 16  # numbers of single precision that are multiplied at once

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Gate = Callable[[Tensor], Tensor]
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


def own_gate(dtype: torch.dtype) -> Gate | None:
    """gelu(gate) · h for the halves of (..., h gate) on a CPU, without gradients; None where it cannot be had."""
    found = _library(dtype)
    return partial(_gate, found) if found else None


def _gate(library: ctypes.CDLL, both: Tensor) -> Tensor:
    both, width = both.contiguous(), both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    library.gated(_at(both), _at(out), ctypes.c_int64(out.numel() // max(1, width)), ctypes.c_int64(width))
    return out


def own_halves() -> Halves | None:
    """float16 (contiguous, on a CPU) -> the nearest bfloat16, as PyTorch rounds; None where it cannot be had."""
    found = _library(torch.bfloat16)
    return partial(_nearest, found) if found else None


def _nearest(library: ctypes.CDLL, x: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=torch.bfloat16)
    library.nearest(_at(x), _at(out), ctypes.c_int64(x.numel()))
    return out


class Norm:
    """GroupNorm of maps (b, c, h, w) whose channels lie last in memory, and LayerNorm; on a CPU, without gradients."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def moments(self, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and offset (b, c) with which scale · x + offset is norm(x + shift), for a shift (b, c)."""
        b, channels, height, width = x.shape
        made = torch.empty(2, b, channels)
        given = [None if t is None else t.float().contiguous() for t in (shift, norm.weight, norm.bias)]
        sizes = map(ctypes.c_int64, (b, height * width, channels, norm.num_groups))
        if self.library.moments(_at(x), *sizes, *map(_at, given), ctypes.c_double(norm.eps), *map(_at, made)):
            raise MemoryError("GroupNorm: there is no memory left")
        return made[0], made[1]

    def scaled(self, x: Tensor, scale: Tensor, offset: Tensor, active: bool) -> Tensor:
        """scale · x + offset, and its SiLU if that is wanted."""
        b, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        sizes = map(ctypes.c_int64, (b, height * width, channels))
        self.library.scaled(_at(x), _at(out), *sizes, _at(scale), _at(offset), ctypes.c_int64(active))
        return out

    def rows(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """norm(x) for x (..., width) of the type of the norm's weights, which it has to have."""
        x = x.contiguous()
        out, width = torch.empty_like(x), x.shape[-1]
        sizes = map(ctypes.c_int64, (x.numel() // width, width))
        self.library.rows_scaled(_at(x), _at(out), *sizes, _at(norm.weight), _at(norm.bias), ctypes.c_double(norm.eps))
        return out


def own_norm(dtype: torch.dtype) -> Norm | None:
    """Our own norms; None where they cannot be had."""
    found = _library(dtype)
    return Norm(found) if found else None


class Convolution:
    """3x3 convolutions, padded by one, of maps on a CPU, without gradients.

    By tiles where the processor has them, and elsewhere by a quarter of the multiplications.
    """

    def __init__(self, library: ctypes.CDLL, tiles: bool) -> None:
        self.library, self.tiles = library, tiles

    def order(self, weight: Tensor) -> Tensor:
        """Weights (out, in, 3, 3) as they are asked for; numbers of no use are zero.

        Sixteen that come out at a time: (out/16, in, 9, 16). Or in tiles, 32 by 32: (out/32, in/32, 9, 2, 16, 16, 2).
        """
        weight, (out, channels) = weight.contiguous(), weight.shape[:2]
        by_tiles = (-(-out // (2 * LANES)), -(-channels // (2 * LANES)), 9, 2, LANES, LANES, 2)
        made = weight.new_empty(by_tiles if self.tiles else (-(-out // LANES), channels, 9, LANES))
        self.library.order(_at(weight), _at(made), ctypes.c_int64(channels), ctypes.c_int64(out))
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
        sizes = map(ctypes.c_int64, (b, *size, channels, out, grows))
        if self.library.convolved(*map(_at, (x, ordered, bias, beside, made)), *sizes):
            raise MemoryError("convolution: there is no memory left")
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
    """Linear layers on a CPU, without gradients. The halves of what comes out may be a gate's: gelu(second) · first."""

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
        self.library.order_rows(_at(weight), _at(made), *map(ctypes.c_int64, (width, out, halves)))
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
        width = x.shape[-1]
        made = x.new_empty(*x.shape[:-1], out // 2 if gates else out)
        sizes = map(ctypes.c_int64, (x.numel() // width, width, out, halves, gates))
        if self.library.multiplied(*map(_at, (x, ordered, bias, beside, made)), *sizes):
            raise MemoryError("linear layer: there is no memory left")
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


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def own_attention(dtype: torch.dtype) -> Attend | None:
    """The quickest on this processor, for what it `suits`; None where there is none."""
    own = kernel(dtype)
    return compiled(own) if own else None


def _attend(library: ctypes.CDLL) -> Attend:
    function, long = library.attention, ctypes.c_int64

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        (b, heads, n, d), m = q.shape, k.shape[2]
        out = q.new_empty(b, n, heads, d)
        views = [x for t in (q, k, v) for x in (_at(t), (long * 3)(*t.stride()[:3]))]
        if function(*views, _at(out), *map(long, (b, heads, n, m, d))):
            raise MemoryError("attention: there is no memory left")
        return out.transpose(1, 2)

    return attend
