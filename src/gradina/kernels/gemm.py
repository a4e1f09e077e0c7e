"""Linear layers and 3x3 convolutions in C, and weights in the order in which they read them."""

from __future__ import annotations

import torch
from torch import Tensor

from gradina.kernels.bindings import Kernel, call, rows

LANES = 16  # fp32 values in a vector register
TILE = 2 * LANES  # rows and columns of weights in two AMX tiles


class Conv3x3Kernel(Kernel):
    """3x3 convolutions of feature maps, padded by one: by AMX tiles, elsewhere by Winograd's F(4x4, 3x3)."""

    def reorder(self, weight: Tensor, transpose: bool = False) -> Tensor:
        """Weights (out, in, 3, 3) in the kernel's order, padded with zeros.

        By 16 output channels: (out/16, in, 9, 16). For tiles, 32 by 32: (out/32, in/32, 9, 2, 16, 16, 2). Transposed,
        they are those of the backward, from the gradient of the output to that of the input.
        """
        last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
        weight, (out, channels) = weight if last else weight.contiguous(), weight.shape[:2]
        out, channels = (channels, out) if transpose else (out, channels)
        tiled = (-(-out // TILE), -(-channels // TILE), 9, 2, LANES, LANES, 2)
        made = weight.new_empty(tiled if self.tiles else (-(-out // LANES), channels, 9, LANES))
        call(self.library.reorder_conv3x3, weight, made, channels, out, last, transpose)
        return made

    def __call__(
        self,
        x: Tensor,
        reordered: Tensor,
        out: int,
        bias: Tensor | None,
        residual: Tensor | None = None,
        upsample: int = 1,
    ) -> Tensor:
        """The convolution of x (b, in, h, w), upsampled by 1 or 2 before it, plus a residual (b, out, h', w')."""
        b, channels, height, width = x.shape
        size, last = (upsample * height, upsample * width), torch.channels_last
        x = x.contiguous(memory_format=last)
        residual = None if residual is None else residual.contiguous(memory_format=last)
        made = torch.empty(b, out, *size, dtype=x.dtype, memory_format=last)
        call(self.library.conv3x3, x, reordered, bias, residual, made, b, *size, channels, out, upsample)
        return made


def conv3x3_weight(reordered: Tensor, out: int, channels: int) -> Tensor:
    """The weights (out, channels, 3, 3) that `Conv3x3Kernel.reorder` was given."""
    if reordered.dim() == 7:
        outs, ins = (TILE * count for count in reordered.shape[:2])
        weight = reordered.permute(0, 3, 5, 1, 4, 6, 2).reshape(outs, ins, 3, 3)
    else:
        weight = reordered.permute(0, 3, 1, 2).reshape(-1, channels, 3, 3)
    return weight[:out, :channels]


class LinearKernel(Kernel):
    """Linear layers. The halves of the output may be those of a GEGLU: gelu(second) · first."""

    def reorder(self, weight: Tensor, halves: bool = False) -> Tensor:
        """Weights (out, in) in the kernel's order, padded with zeros.

        By 64 outputs: (out/64, in, 64), with `halves` (out/64, in, 2, 32). For tiles, 32 by 32: (out/32, in/32, 2, 16,
        16, 2), where the first 2 may be the halves.
        """
        weight, (out, width) = weight.contiguous(), weight.shape
        wide, deep = (TILE, -(-width // TILE)) if self.tiles else (4 * LANES, width)
        panels = -(-(out // 2) // (wide // 2)) if halves else -(-out // wide)
        each = (2, LANES, LANES, 2) if self.tiles else (2, wide // 2) if halves else (wide,)
        made = weight.new_empty(panels, deep, *each)
        call(self.library.reorder_linear, weight, made, width, out, halves)
        return made

    def __call__(
        self,
        x: Tensor,
        reordered: Tensor,
        out: int,
        bias: Tensor | None,
        residual: Tensor | None = None,
        halves: bool = False,
        geglu: bool = False,
    ) -> Tensor:
        """x (..., in) -> (..., out), plus a residual; with `geglu` its halves become (..., out / 2)."""
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        made = x.new_empty(*x.shape[:-1], out // 2 if geglu else out)
        call(self.library.linear, x, reordered, bias, residual, made, *rows(x), out, halves, geglu)
        return made


def linear_weight(reordered: Tensor, out: int, width: int, halves: bool = False) -> Tensor:
    """The weights (out, width) that `LinearKernel.reorder` was given."""
    if reordered.dim() < 6:
        lines = reordered.permute(2, 0, 3, 1) if halves else reordered.permute(0, 2, 1)
    else:
        lines = reordered.permute((2, 0, 4, 1, 3, 5) if halves else (0, 2, 4, 1, 3, 5)).flatten(3)
    if halves:
        return lines.reshape(2, -1, lines.shape[-1])[:, : out // 2, :width].flatten(0, 1)
    return lines.reshape(-1, lines.shape[-1])[:out, :width]
