"""The convolutional parts that the autoencoder and the U-Net share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.chunked import norm_silu_conv, upsample_conv
from gradina.nn.conv2d import Conv2d


class BatchNorm(nn.Module):
    """Each channel of (b, width, h, w) at mean 0 and variance 1: of the batch while learning, else as they were then.

    torch.nn's own counts batches besides, in a whole number that nothing reads and half precision could not hold.
    Source: Ioffe & Szegedy, "Batch Normalization" (1502.03167), algorithms 1 and 2.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip: (b, width, h, w) -> (b, out_width, h, w).

    With `time_width`, an embedding (b, time_width) is added between them. Source: He et al. 2016; Ho et al. 2020, B.
    """

    def __init__(
        self, width: int, out_width: int, time_width: int | None = None, groups: int = 32, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, eps)
        self.conv1 = Conv2d(width, out_width, 3, padding=1)
        self.time = nn.Linear(time_width, out_width) if time_width else None
        self.norm2 = nn.GroupNorm(groups, out_width, eps)
        self.conv2 = Conv2d(out_width, out_width, 3, padding=1)
        self.skip = Conv2d(width, out_width, 1) if width != out_width else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = norm_silu_conv(self.norm1, self.conv1, x)
        shift = None if self.time is None or time is None else self.time(F.silu(time))
        return norm_silu_conv(self.norm2, self.conv2, h, x, self.skip, shift, spare=True)


class Downsample(nn.Module):
    """A stride-2 convolution: (b, c, h, w) -> (b, c, h/2, w/2).

    The U-Net pads all sides; the autoencoder pads right and bottom only (`one_sided`).
    """

    def __init__(self, width: int, one_sided: bool = False) -> None:
        super().__init__()
        self.one_sided = one_sided
        self.conv = Conv2d(width, width, 3, stride=2, padding=0 if one_sided else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.one_sided else x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, or growth to `size`, then a convolution: (b, c, h, w) -> (b, c, 2h, 2w)."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        if size == (2 * x.shape[2], 2 * x.shape[3]):
            return upsample_conv(self.conv, x)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
