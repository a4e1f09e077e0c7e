"""Convolutions over large maps, strip after strip: the same numbers, without the memory that whole maps take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.memory import added, silu
from gradina.nn.packed import plus

LARGE = 2**26  # numbers of a map: beyond it (a 512x512 picture's widest have as many), it is gone over in strips
ROWS = 64  # of a strip, which looks at one more on either side


def is_large(x: Tensor) -> bool:
    """Whether a map is gone over in strips: there is much of it, and nothing learns."""
    return x.numel() > LARGE and not torch.is_grad_enabled()


def activated_conv(norm: nn.GroupNorm, conv: nn.Module, x: Tensor, beside: Tensor | None = None) -> Tensor:
    """conv(silu(norm(x))), plus what is beside it, for a 3x3 padded by one: (b, c, h, w) -> (b, out, h, w)."""
    if not is_large(x):
        h = silu(norm(x))
        return conv(h) if beside is None else plus(conv, h, beside)
    h = torch.cat([_of_one(norm, conv, one[None]) for one in x]) if len(x) > 1 else _of_one(norm, conv, x)
    return h if beside is None else added(h, beside)


def _of_one(norm: nn.GroupNorm, conv: nn.Module, x: Tensor) -> Tensor:
    mean, variance = _moments(x, norm.num_groups)

    def layer(part: Tensor) -> Tensor:  # with its moments given, a group is normalised as a batch is
        h = F.batch_norm(part, mean, variance, norm.weight.float(), norm.bias.float(), eps=norm.eps)
        return conv(silu(h))

    return in_strips(layer, x)


def in_strips(layer: Callable[[Tensor], Tensor], x: Tensor, grows: int = 1) -> Tensor:
    """layer(x) for a layer that looks one row up and down, and makes `grows` rows out of each."""
    out: Tensor | None = None
    for top, bottom in _strips(x):
        above, below = max(0, top - 1), min(x.shape[2], bottom + 1)
        made = layer(x[:, :, above:below])
        if out is None:
            like = torch.channels_last if made.is_contiguous(memory_format=torch.channels_last) else None
            shape = (*made.shape[:2], grows * x.shape[2], made.shape[3])
            out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=like or torch.contiguous_format)
        first = grows * (top - above)
        out[:, :, grows * top : grows * bottom] = made[:, :, first : first + grows * (bottom - top)]
    assert out is not None
    return out


def _strips(x: Tensor) -> Iterator[tuple[int, int]]:
    for top in range(0, x.shape[2], ROWS):
        yield top, min(x.shape[2], top + ROWS)


def _moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (c,) of the group of each channel of x (1, c, h, w), in single precision.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1.
    """
    parts = [torch.var_mean(x[0, :, a:b].float(), dim=(1, 2), correction=0) for a, b in _strips(x)]
    rows = torch.tensor([b - a for a, b in _strips(x)], dtype=torch.float64, device=x.device)[:, None, None]
    variances, means = (torch.stack(m).double().view(len(parts), groups, -1) for m in zip(*parts, strict=True))
    count = rows.sum() * means.shape[2]
    mean = (rows * means).sum((0, 2)) / count
    variance = (rows * (variances + (means - mean[None, :, None]).square())).sum((0, 2)) / count
    each = x.shape[1] // groups
    return mean.float().repeat_interleave(each), variance.float().repeat_interleave(each)
