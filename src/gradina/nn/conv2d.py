"""Convolutions, in one place to make them fast to learn."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.memory import learning

FEW = 64  # places of a map: up to here, a product is the quickest way to the slope of a 3x3 convolution's weights


class Conv2d(nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h', w')."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and learning(x) and x.is_contiguous(memory_format=torch.channels_last):
            weight = self.weight.to(x.dtype)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            if is_pointwise(self):
                return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
            if is_three(self) and x.shape[2] * x.shape[3] <= FEW:
                return cast(Tensor, Three.apply(x, weight, bias))  # type: ignore[no-untyped-call]
        return super().forward(x)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether it is 1x1, and looks at each place alone."""
    return _is_plain(layer) and layer.kernel_size == (1, 1) and layer.padding == (0, 0)


def is_three(layer: nn.Conv2d) -> bool:
    """Whether it is 3x3, padded by one."""
    return _is_plain(layer) and layer.kernel_size == (3, 3) and layer.padding == (1, 1)


def _is_plain(layer: nn.Conv2d) -> bool:
    return layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"


class Three(torch.autograd.Function):
    """A 3x3 convolution, padded by one, of maps whose channels lie last: on the way back, weights by one product.

    Source: Chellapilla, Puri & Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        out, channels = weight.shape[:2]
        slope = slope.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            how: Any = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
            of_x = torch.ops.aten.convolution_backward(slope, x, weight, None, *how)[0]
        rows = slope.permute(0, 2, 3, 1).flatten(0, 2)
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ _seen(x)).view(out, 3, 3, channels).permute(0, 3, 1, 2)
        if ctx.biased:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _seen(x: Tensor) -> Tensor:
    """What a 3x3 convolution, padded by one, sees at each place of x (b, c, h, w): (b·h·w, 9·c), row by row of it."""
    b, channels, height, width = x.shape
    framed = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    of_map, of_row, of_place, _ = framed.stride()
    lines = framed.as_strided((b, height, width, 3, 3 * channels), (of_map, of_row, of_place, of_row, 1))
    return lines.reshape(b * height * width, 9 * channels)
