"""GroupNorm and what follows it, and LayerNorm, in one place to make them fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.bindings import Norm, own_norm
from gradina.kernels.dispatch import is_inference, is_training, once_differentiable
from gradina.nn.memory import added, silu

Layer = Callable[[Tensor], Tensor]
ROWS = 64  # of a map: as many at once for its moments


class LayerNorm(nn.LayerNorm):
    """Each token of (..., width) at mean 0 and variance 1, then scaled and moved.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (1607.06450), equation 4.
    """

    def forward(self, x: Tensor) -> Tensor:
        own = own_norm(x.dtype) if is_inference(x) and x.dtype == self.weight.dtype else None
        return super().forward(x) if own is None else own.rows(self, x)


def normalised(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, active: bool = False) -> Tensor:
    """norm(x + shift) for maps x (b, c, h, w) and a shift (b, c), and its SiLU if that is wanted.

    With a shift, x is of no further use.
    """
    if own := _own(x):
        scale, offset, *_ = own.moments(norm, x, shift)
        return own.scaled(x, scale, offset, active)
    if is_training(x) and _last(x) and (own := own_norm(x.dtype)):
        given = (own, norm, x, norm.weight, norm.bias, shift, active)
        return cast(Tensor, Normalised.apply(*given))  # type: ignore[no-untyped-call]
    h = norm(x if shift is None else added(x, shift[:, :, None, None]))
    return silu(h) if active else h


def normaliser(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None) -> Layer:
    """What gives silu(norm(x + shift)) of some rows of a map x (1, c, h, w) at a time."""
    if own := _own(x):
        scale, offset, *_ = own.moments(norm, x, shift)
        return partial(own.scaled, scale=scale, offset=offset, active=True)
    moved = x.new_zeros(1, dtype=torch.float32) if shift is None else shift[0].float()
    mean, variance = _moments(x, norm.num_groups, moved)

    def layer(part: Tensor) -> Tensor:  # with its moments given, a group is normalised as a batch is
        return silu(F.batch_norm(part, mean - moved, variance, norm.weight.float(), norm.bias.float(), eps=norm.eps))

    return layer


def is_fast(x: Tensor) -> bool:
    """Whether that is done in C, so that it costs nothing more to go over a map in parts."""
    return _own(x) is not None


def _own(x: Tensor) -> Norm | None:
    return own_norm(x.dtype) if _last(x) and is_inference(x) else None


def _last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class Normalised(torch.autograd.Function):
    """`normalised` for training: forward and backward in C; only the input and its moments are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        own: Norm,
        norm: nn.GroupNorm,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        active: bool,
    ) -> Tensor:
        moments = own.moments(norm, x, shift)
        scale, offset, *_ = moments
        ctx.own, ctx.groups, ctx.active, ctx.shifted = own, norm.num_groups, active, shift is not None
        ctx.save_for_backward(x, moments, weight)
        return own.scaled(x, scale, offset, active)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias, grad_shift = ctx.own.back(
            *ctx.saved_tensors, grad_output, ctx.groups, ctx.active
        )
        return None, None, grad_x, grad_weight, grad_bias, grad_shift if ctx.shifted else None, None


def _moments(x: Tensor, groups: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (c,) of the group of each channel of x + shift (1, c, h, w), in single precision.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1.
    """
    rows = torch.split(x[0], ROWS, dim=1)
    parts = [torch.var_mean(part.float(), dim=(1, 2), correction=0) for part in rows]
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # there are no doubles with MPS
    heights = torch.stack([x.new_full((1, 1), part.shape[1], dtype=wide) for part in rows])
    variances, means = (torch.stack(m).to(wide) for m in zip(*parts, strict=True))
    variances, means = (m.view(len(rows), groups, -1) for m in (variances, means + shift))
    count = heights.sum() * means.shape[2]
    mean = (heights * means).sum((0, 2)) / count
    variance = (heights * (variances + (means - mean[None, :, None]).square())).sum((0, 2)) / count
    each = x.shape[1] // groups
    return mean.float().repeat_interleave(each), variance.float().repeat_interleave(each)
