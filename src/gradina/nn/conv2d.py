"""Convolutions, in one place to make them fast to learn."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.bindings import own_norm
from gradina.kernels.dispatch import is_training, once_differentiable
from gradina.kernels.gemm import Convolution, own_convolution

Network = TypeVar("Network", bound=nn.Module)

NARROW = 16  # channels of a 3x3 convolution: with fewer, there is too little for our own to multiply
FEW = {
    torch.float32: 16,
    torch.bfloat16: 64,
}  # pixels of a map: up to here, the gradient of the weight is best one matrix product
MUCH = 2**24  # multiplications for each tap, from which on our own convolution is quickest to learn in single precision


class Conv2d(nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h', w')."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in FEW or not is_training(x) or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        if is_pointwise(self):
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if is_three(self) and _is_own_quickest(x, self.weight) and (own := own_convolution(x.dtype)):
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return cast(Tensor, Three.apply(own, x, self.weight.to(x.dtype), bias))  # type: ignore[no-untyped-call]
        return super().forward(x)


def channels_last(network: Network, dtype: torch.dtype) -> Network:
    """The network itself, to learn in numbers of that type: in the order in memory that is quickest to convolutions.

    Their weights have their channels last, and maps follow; but only if GroupNorms are quick with that, too.
    """
    if own_norm(dtype) and any(isinstance(layer, nn.GroupNorm) for layer in network.modules()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether it is 1x1, and looks at each place alone."""
    return _is_plain(layer) and layer.kernel_size == (1, 1) and layer.padding == (0, 0)


def is_three(layer: nn.Conv2d) -> bool:
    """Whether it is 3x3, padded by one, with enough channels for our own convolution."""
    enough = min(layer.weight.shape[:2]) >= NARROW
    return _is_plain(layer) and layer.kernel_size == (3, 3) and layer.padding == (1, 1) and enough


def _is_own_quickest(x: Tensor, weight: Tensor) -> bool:
    """With all that has to be reordered for it, forward and backward."""
    places = x.shape[2] * x.shape[3]
    if x.dtype == torch.bfloat16:
        return places <= FEW[x.dtype]
    return len(x) * places * weight.shape[0] * weight.shape[1] >= MUCH


def _is_plain(layer: nn.Conv2d) -> bool:
    return layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"


class Three(torch.autograd.Function):
    """A 3x3 convolution, padded by one, of channels-last maps: forward and backward in C.

    On small maps, the gradient of its weight is one matrix product. Source: Chellapilla, Puri & Simard, "High
    Performance Convolutional Neural Networks for Document Processing", 2006.
    """

    @staticmethod
    def forward(ctx: Any, own: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.own = own
        ctx.save_for_backward(x, weight)
        return own(x, own.order(weight), len(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        out, channels = weight.shape[:2]
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        rows = grad_output.permute(0, 2, 3, 1).flatten(0, 2)
        grad_x = grad_weight = grad_bias = None
        _, into_x, into_weight, into_bias = ctx.needs_input_grad
        if into_x:
            grad_x = ctx.own(grad_output, ctx.own.order(weight, turned=True), channels, None)
        if into_weight and x.shape[2] * x.shape[3] <= FEW[x.dtype]:
            grad_weight = (rows.T @ _seen(x)).view(out, 3, 3, channels).permute(0, 3, 1, 2)
        elif into_weight:
            how: Any = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
            grad_weight = torch.ops.aten.convolution_backward(grad_output, x, weight, None, *how)[1]
        if into_bias:
            grad_bias = rows.sum(0)
        return None, grad_x, grad_weight, grad_bias


def _seen(x: Tensor) -> Tensor:
    """What a 3x3 convolution, padded by one, sees at each place of x (b, c, h, w): (b·h·w, 9·c), row by row of it."""
    b, channels, height, width = x.shape
    framed = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    of_map, of_row, of_place, _ = framed.stride()
    lines = framed.as_strided((b, height, width, 3, 3 * channels), (of_map, of_row, of_place, of_row, 1))
    return lines.reshape(b * height * width, 9 * channels)
