"""The few fused operations, each with its PyTorch definition: the only door to the kernels.

A trailing underscore says that an operation may overwrite its first tensor, if gradients are disabled. Then memory is
used again: to have fresh memory cleared takes as long as to write a feature map into it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.dispatch import dispatch, phase
from gradina.kernels.malloc import trim_heap
from gradina.kernels.prepack import PackedWeight
from gradina.nn.chunked import map_rows, map_tokens

LARGE = 2**26  # elements of a feature map (a 512x512 picture's widest have as many): beyond, it is computed in chunks
LARGE_NATIVE = 2**24  # the same where chunks take no time; what is smaller is kept for the next map, and so at hand
CAST_AT_ONCE = 2**18  # elements that are cast together: what is in between takes 1 MB, near the cores
MOMENTS_ROWS = 64  # of a feature map, whose moments are computed at once


def add_(h: Tensor, x: Tensor) -> Tensor:
    """h + x."""
    if torch.is_grad_enabled() or h.dtype != torch.promote_types(h.dtype, x.dtype):
        return h + x
    return h.add_(x)


def silu_(h: Tensor) -> Tensor:
    """h · sigmoid(h)."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """x Wᵀ + b."""
    weight, bias = layer.weight, layer.bias
    if kernel := dispatch("linear", x, weight=weight):
        return kernel(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_add(layer: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """layer(h) + x, for a linear layer."""
    weight = layer.weight if isinstance(layer, nn.Linear) else None
    if kernel := dispatch("linear", h, None, x, weight=weight):
        return kernel(h, weight, layer.bias, x)
    return add_(layer(h), x)


def geglu(x: Tensor) -> Tensor:
    """gelu(gate) · h for the halves of x: (..., h gate) -> (..., h).

    Source: Shazeer, "GLU Variants Improve Transformer" (2002.05202), equation 6.
    """
    if kernel := dispatch("geglu", x):
        return kernel(x)
    h, gate = x.chunk(2, dim=-1)
    return h * F.gelu(gate)


def linear_geglu(layer: nn.Module, x: Tensor) -> Tensor:
    """geglu(layer(x)), for a linear layer."""
    weight = layer.weight if isinstance(layer, nn.Linear) else None
    if kernel := dispatch("linear_geglu", x, weight=weight):
        return kernel(x, weight, layer.bias)
    return geglu(layer(x))


def conv2d(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of x (b, c, h, w)."""
    weight, bias = conv.weight, conv.bias
    if kernel := dispatch("conv2d", x, conv, weight=weight):
        return kernel(x, weight, bias)
    return conv._conv_forward(x, weight, bias)


def conv_add(conv: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """conv(h) + x."""
    weight = conv.weight if isinstance(conv, nn.Conv2d) else None
    if kernel := dispatch("conv2d", h, conv, x, weight=weight):
        return kernel(h, weight, conv.bias, x)
    return add_(conv(h), x)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v for q (b, heads, n, d) and k, v (b, heads, m, d): (b, heads, n, d).

    Source: Vaswani et al., "Attention Is All You Need", equation 1.
    """
    if kernel := dispatch("causal_attention" if causal else "attention", q, k):
        return kernel(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Each token of x (..., width) at mean 0 and variance 1, then scaled and shifted.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (1607.06450), equation 4.
    """
    weight, bias = norm.weight, norm.bias
    if kernel := dispatch("layer_norm", x, weight.dtype):
        return kernel(x, weight, bias, norm.eps)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """norm(x) for feature maps x (b, c, h, w)."""
    if kernel := dispatch("group_norm", x):
        return kernel(norm, x)
    return cast(Tensor, norm(x))


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """silu(norm(x)) for feature maps x (b, c, h, w)."""
    if kernel := dispatch("group_norm", x):
        return kernel(norm, x, silu=True)
    return silu_(norm(x))


def norm_silu_(norm: nn.GroupNorm, x: Tensor, shift: Tensor) -> Tensor:
    """silu(norm(x + shift)) for feature maps x (b, c, h, w) and a shift (b, c)."""
    if kernel := dispatch("group_norm", x):
        return kernel(norm, x, shift, silu=True)
    return norm_silu(norm, add_(x, shift[:, :, None, None]))


def norm_silu_conv(norm: nn.GroupNorm, conv: nn.Module, x: Tensor) -> Tensor:
    """conv(silu(norm(x))) for a 3x3 convolution, padded by one: (b, c, h, w) -> (b, out, h, w)."""
    if is_large(x):
        return map_rows(_norm_silu_conv_rows(norm, conv, x), x)
    return cast(Tensor, conv(norm_silu(norm, x)))


def norm_silu_conv_(
    norm: nn.GroupNorm,
    conv: nn.Module,
    x: Tensor,
    shift: Tensor | None,
    residual: Tensor,
    skip: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """conv(silu(norm(x + shift))) + skip(residual) for such a convolution, and a skip that sees each pixel alone."""
    if is_large(x):
        rows = _norm_silu_conv_rows(norm, conv, x, shift)
        return map_rows(rows, x, residual=lambda at: residual[at] if skip is None else skip(residual[at]), out=x)
    h = norm_silu(norm, x) if shift is None else norm_silu_(norm, x, shift)
    return conv_add(conv, h, residual if skip is None else skip(residual))


def upsample_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) for x upsampled by 2, of the nearest: (b, c, h, w) -> (b, out, 2h, 2w)."""
    if is_large(x, upsample=2):
        trim_heap()  # what smaller maps have left
        return map_rows(lambda rows, i: _upsample_conv(conv, rows), x, upsample=2)
    return _upsample_conv(conv, x)


def _upsample_conv(conv: nn.Module, x: Tensor) -> Tensor:
    weight = conv.weight if isinstance(conv, nn.Conv2d) else None
    if kernel := dispatch("upsample_conv", x, weight=weight):
        return kernel(x, weight, conv.bias)
    return cast(Tensor, conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


def geglu_ffn(proj_in: nn.Module, proj_out: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """proj_out(geglu(proj_in(h))) + x, for linear layers and tokens h, x (b, n, width)."""

    def ffn(h: Tensor, x: Tensor) -> Tensor:
        return linear_add(proj_out, linear_geglu(proj_in, h), x)

    return map_tokens(ffn, h, x) if phase(x) == "inference" else ffn(h, x)


def is_large(x: Tensor, upsample: int = 1) -> bool:
    """Whether a feature map, or what it is upsampled to, is computed in chunks, which takes gradients disabled."""
    if torch.is_grad_enabled():
        return False
    return x.numel() * upsample**2 > (LARGE_NATIVE if dispatch("group_norm", x) else LARGE)


def _norm_silu_conv_rows(
    norm: nn.GroupNorm, conv: nn.Module, x: Tensor, shift: Tensor | None = None
) -> Callable[[Tensor, int], Tensor]:
    """What gives conv(silu(norm(x[i] + shift[i]))) for some rows of x (b, c, h, w), by i."""
    shifts = [None if shift is None else shift[i : i + 1] for i in range(len(x))]
    norms = [_norm_silu_rows(norm, x[i : i + 1], each) for i, each in enumerate(shifts)]
    return lambda rows, i: conv(norms[i](rows))


def _norm_silu_rows(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What gives silu(norm(x + shift)) for some rows of x (1, c, h, w)."""
    if kernel := cast(Any, dispatch("group_norm", x)):
        scale, offset, *_ = kernel.moments(norm, x, shift)
        return partial(kernel.scaled, scale=scale, offset=offset, silu=True)
    moved = x.new_zeros(1, dtype=torch.float32) if shift is None else shift[0].float()
    mean, variance = _moments(x, norm.num_groups, moved)

    def rows(part: Tensor) -> Tensor:  # with its moments given, a group is normalised as a batch is
        return silu_(F.batch_norm(part, mean - moved, variance, norm.weight.float(), norm.bias.float(), eps=norm.eps))

    return rows


def _moments(x: Tensor, groups: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (c,) of the group of each channel of x + shift (1, c, h, w), in fp32.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1.
    """
    parts = torch.split(x[0], MOMENTS_ROWS, dim=1)
    moments = [torch.var_mean(part.float(), dim=(1, 2), correction=0) for part in parts]
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no doubles
    heights = torch.stack([x.new_full((1, 1), part.shape[1], dtype=wide) for part in parts])
    variances, means = (torch.stack(m).to(wide) for m in zip(*moments, strict=True))
    variances, means = (m.view(len(parts), groups, -1) for m in (variances, means + shift))
    count = heights.sum() * means.shape[2]
    mean = (heights * means).sum((0, 2)) / count
    variance = (heights * (variances + (means - mean[None, :, None]).square())).sum((0, 2)) / count
    each = x.shape[1] // groups
    return mean.float().repeat_interleave(each), variance.float().repeat_interleave(each)


def cast_half(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype) from one half precision to the other, in a third of the time; by the kernel in a fifth."""
    if dtype == torch.bfloat16 and x.is_contiguous() and (kernel := dispatch("bfloat16", x)):
        return kernel(x)
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    for some, to in zip(*(torch.split(each.reshape(-1), CAST_AT_ONCE) for each in (x, out)), strict=True):
        to.copy_(some.float())
    return out


def weight_like(weight: Tensor, values: Tensor) -> nn.Parameter:
    """Other values for a fixed weight, in the same order in memory."""
    if isinstance(weight, PackedWeight):
        return cast(nn.Parameter, PackedWeight(values, weight.order))
    return nn.Parameter(values, requires_grad=False)
