"""Convolutions and linear layers by our kernels, and weights in the order that they ask for."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from gradina.kernels.bindings import call, rows
from gradina.kernels.build import kernel, library

LANES = 16  # numbers of single precision that are multiplied at once


class Convolution:
    """3x3 convolutions, padded by one, of maps.

    By tiles where the processor has them, and elsewhere by a quarter of the multiplications.
    """

    def __init__(self, library: ctypes.CDLL, tiles: bool) -> None:
        self.library, self.tiles = library, tiles

    def order(self, weight: Tensor, turned: bool = False) -> Tensor:
        """Weights (out, in, 3, 3) as they are asked for; numbers of no use are zero.

        Sixteen that come out at a time: (out/16, in, 9, 16). Or in tiles, 32 by 32: (out/32, in/32, 9, 2, 16, 16, 2).
        Turned, they are those of the backward, from the gradient of the output to that of the input.
        """
        last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
        weight, (out, channels) = weight if last else weight.contiguous(), weight.shape[:2]
        out, channels = (channels, out) if turned else (out, channels)
        by_tiles = (-(-out // (2 * LANES)), -(-channels // (2 * LANES)), 9, 2, LANES, LANES, 2)
        made = weight.new_empty(by_tiles if self.tiles else (-(-out // LANES), channels, 9, LANES))
        call(self.library.order, weight, made, channels, out, last, turned)
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
        call(self.library.convolved, x, ordered, bias, beside, made, b, *size, channels, out, grows)
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
        call(self.library.order_rows, weight, made, width, out, halves)
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
        call(self.library.multiplied, x, ordered, bias, beside, made, *rows(x), out, halves, gates)
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
