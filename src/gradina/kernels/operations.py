"""Operations that the table of dispatch.py chooses from: functions around the kernels, oneDNN's and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.autograd import Conv3x3Function, GroupNormFunction, SoftmaxFunction
from gradina.kernels.bindings import BFloat16Kernel, GroupNormKernel, SoftmaxKernel, native
from gradina.kernels.gemm import Conv3x3Kernel, LinearKernel
from gradina.kernels.prepack import PackedWeight

Operation = Callable[..., Tensor]
Bias = Tensor | None


def matmul_attention(softmax: SoftmaxKernel | None, q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention as plain products: its backward in bf16 is three to seven times as fast (benchmarks/attention.py)."""
    scale = q.shape[-1] ** -0.5
    if softmax is not None and not causal:
        return cast(Tensor, SoftmaxFunction.apply(softmax, q @ k.mT, scale)) @ v  # type: ignore[no-untyped-call]
    scores = q * scale @ k.mT
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def train_group_norm(
    kernel: GroupNormKernel, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, silu: bool = False
) -> Any:
    return GroupNormFunction.apply(kernel, norm, x, norm.weight, norm.bias, shift, silu)  # type: ignore[no-untyped-call]


def train_conv3x3(kernel: Conv3x3Kernel, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    bias = None if bias is None else bias.to(x.dtype)
    return Conv3x3Function.apply(kernel, x, weight.to(x.dtype), bias)  # type: ignore[no-untyped-call]


def train_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def conv3x3(kernel: Conv3x3Kernel, x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None, **how: int) -> Tensor:
    return kernel(x, w.packed, w.shape[0], bias, residual, **how)


def linear(kernel: LinearKernel, x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None, **how: bool) -> Tensor:
    return kernel(x, w.packed, w.shape[0], bias, residual, **how)


def onednn_linear(x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None) -> Any:
    if residual is None:
        return torch.ops.mkldnn._linear_pointwise(x, w.packed, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, w.packed, bias, "add")


def onednn_conv(x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None) -> Any:
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, w.packed, bias, *w.order.geometry, "none", [], "")
    add: Any = ("add", None, None, [], None)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, w.packed, bias, *w.order.geometry, *add)


def pointwise(layer: Operation, x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None) -> Tensor:
    """A 1x1 convolution of a channels-last feature map, as the linear layer that it is to each pixel."""
    rows = None if residual is None else residual.permute(0, 2, 3, 1)
    return layer(x.permute(0, 2, 3, 1), w, bias, rows).permute(0, 3, 1, 2)


def onednn_pointwise(x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None) -> Tensor:
    return pointwise(onednn_linear, x, w, bias, residual)


def native_pointwise(kernel: LinearKernel, x: Tensor, w: PackedWeight, bias: Bias, residual: Bias = None) -> Tensor:
    return pointwise(partial(linear, kernel), x, w, bias, residual)


def bfloat16(x: Tensor) -> Tensor:
    """float16 -> bfloat16, where there is a kernel."""
    return cast(BFloat16Kernel, native(BFloat16Kernel, torch.bfloat16))(x)
