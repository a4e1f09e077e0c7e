"""Convolutions, and the convolutional blocks that the autoencoder and the U-Net share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn import ops
from gradina.nn.linear import Linear


class Conv2d(nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h', w')."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(self, x)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions and a residual: (b, width, h, w) -> (b, out_width, h, w).

    With `time_width`, an embedding (b, time_width) is added between them. Source: He et al. 2016; Ho et al. 2020, B.
    """

    def __init__(
        self, width: int, out_width: int, time_width: int | None = None, groups: int = 32, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, eps)
        self.conv1 = Conv2d(width, out_width, 3, padding=1)
        self.time = Linear(time_width, out_width) if time_width else None
        self.norm2 = nn.GroupNorm(groups, out_width, eps)
        self.conv2 = Conv2d(out_width, out_width, 3, padding=1)
        self.skip = Conv2d(width, out_width, 1) if width != out_width else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = ops.norm_silu_conv(self.norm1, self.conv1, x)
        shift = None if self.time is None or time is None else self.time(F.silu(time))
        return ops.norm_silu_conv_(self.norm2, self.conv2, h, shift, residual=x, skip=self.skip)


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
    """Nearest-neighbour upsampling by 2, or to `size`, then a convolution: (b, c, h, w) -> (b, c, 2h, 2w)."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None or size == (2 * x.shape[2], 2 * x.shape[3]):
            return ops.upsample_conv(self.conv, x)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
