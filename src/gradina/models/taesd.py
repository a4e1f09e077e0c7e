"""A tiny decoder of latents, fast and rough, for previews: TAESD (Bohan, github.com/madebyollin/taesd; no paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.conv import Conv2d, Upsample

MAGNITUDE = 3.0  # at which latents are softly clipped


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """The decoder's shape; TAESD's is the default."""

    latent_channels: int = 4
    width: int = 64
    blocks: tuple[int, ...] = (3, 3, 3, 1)  # for each resolution

    @property
    def factor(self) -> int:
        """How many times larger pictures are along each side."""
        return 2 ** (len(self.blocks) - 1)


class TinyBlock(nn.Module):
    """Three 3x3 convolutions and a residual, without any norm: (b, width, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        return F.relu(x + third(F.relu(second(F.relu(first(x))))))


class TinyStage(nn.Module):
    """Blocks at one resolution, then the next one: (b, width, h, w) -> (b, width, 2h, 2w), unless it is the last."""

    def __init__(self, width: int, blocks: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TinyBlock(width) for _ in range(blocks))
        self.grow = None if last else Upsample(width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.grow is None else self.grow(x)


class TinyDecoder(nn.Module):
    """Latents (b, latent_channels, h, w) -> pixels (b, 3, f·h, f·w), about -1..1."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = c = config
        self.conv_in = Conv2d(c.latent_channels, c.width, 3, padding=1)
        last = len(c.blocks) - 1
        self.stages = nn.ModuleList(TinyStage(c.width, blocks, i == last) for i, blocks in enumerate(c.blocks))
        self.conv_out = Conv2d(c.width, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        clipped = MAGNITUDE * torch.tanh(latents / MAGNITUDE)
        x = F.relu(self.conv_in(clipped))
        for stage in self.stages:
            x = stage(x)
        return 2 * self.conv_out(x) - 1
