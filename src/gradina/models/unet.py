"""The U-Net: noisy pixels or latents in, the noise out, conditioned on text.

Source: Ronneberger et al. 2015; with attention to text: Rombach et al. (2112.10752), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gradina.nn.attention import Attention
from gradina.nn.conv import Conv2d, Downsample, ResBlock, Upsample
from gradina.nn.embed import TimeMLP
from gradina.nn.geglu import GEGLU
from gradina.nn.linear import Linear
from gradina.nn.norm import LayerNorm
from gradina.nn.ops import add_, conv_add, group_norm, norm_silu_conv


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The U-Net's shape; SD 1 is the default. Each tuple has one entry for each resolution, finest first."""

    channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    blocks: int = 2  # residual blocks for each resolution
    depth: int = 1  # transformer blocks in each attention
    context: int = 768  # width of the text states
    linear: bool = False  # projections around attention: linear (SD 2) or 1x1 convolutions (SD 1)
    groups: int = 32
    time: bool = True  # False: the network has no time input
    size: int = 64  # of the latents it was trained on


@dataclass(frozen=True, eq=False)
class Control:
    """What a ControlNet adds to a U-Net: a residual for each skip, in the order of the down path, and the middle."""

    down: Sequence[Tensor]
    middle: Tensor


class TransformerBlock(nn.Module):
    """Attention of the tokens to each other, then to the text, then a feed-forward layer: (b, n, width) -> the same."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.self_attn = Attention(width, heads, bias=False)
        self.norm2 = LayerNorm(width)
        self.cross_attn = Attention(width, heads, context_width=context, bias=False)
        self.norm3 = LayerNorm(width)
        self.ff = GEGLU(width)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = self.self_attn(self.norm1(x), residual=x)
        x = self.cross_attn(self.norm2(x), cond, residual=x)
        return self.ff(self.norm3(x), x)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, and a residual: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, width: int, heads: int, config: UNetConfig) -> None:
        super().__init__()
        self.linear = config.linear
        self.norm = nn.GroupNorm(config.groups, width, 1e-6)
        self.proj_in = Linear(width, width) if config.linear else Conv2d(width, width, 1)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, config.context) for _ in range(config.depth))
        self.proj_out = Linear(width, width) if config.linear else Conv2d(width, width, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = group_norm(self.norm, x)
        h = self.proj_in(_tokens(h)) if self.linear else _tokens(self.proj_in(h))
        for block in self.blocks:
            h = block(h, cond)
        return add_(_pixels(self.proj_out(h), x), x) if self.linear else conv_add(self.proj_out, _pixels(h, x), x)


def _tokens(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h·w, c)"""
    return x.flatten(2).transpose(1, 2)


def _pixels(h: Tensor, like: Tensor) -> Tensor:
    """(b, h·w, c) -> (b, c, h, w)"""
    return h.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


class Down(nn.Module):
    """One resolution of the down path; returns its feature maps, the last downsampled unless it is the coarsest."""

    def __init__(self, config: UNetConfig, level: int, time_width: int | None) -> None:
        super().__init__()
        c, out = config, config.widths[level]
        widths = [c.widths[max(level - 1, 0)]] + [out] * (c.blocks - 1)
        self.res = nn.ModuleList(ResBlock(w, out, time_width, c.groups) for w in widths)
        attended = c.blocks if c.attention[level] else 0
        self.attn = nn.ModuleList(SpatialTransformer(out, c.heads[level], c) for _ in range(attended))
        self.shrink = Downsample(out) if level < len(c.widths) - 1 else None

    def forward(self, x: Tensor, time: Tensor | None, cond: Tensor) -> list[Tensor]:
        maps = []
        for i, res in enumerate(self.res):
            x = res(x, time)
            if self.attn:
                x = self.attn[i](x, cond)
            maps.append(x)
        return maps if self.shrink is None else [*maps, self.shrink(x)]


class Middle(nn.Module):
    """The coarsest resolution: residual block, attention, residual block."""

    def __init__(self, config: UNetConfig, time_width: int | None) -> None:
        super().__init__()
        width = config.widths[-1]
        self.res1 = ResBlock(width, width, time_width, config.groups)
        self.attn = SpatialTransformer(width, config.heads[-1], config)
        self.res2 = ResBlock(width, width, time_width, config.groups)

    def forward(self, x: Tensor, time: Tensor | None, cond: Tensor) -> Tensor:
        return self.res2(self.attn(self.res1(x, time), cond), time)


class Up(nn.Module):
    """One resolution of the up path: each residual block also reads a skip from the down path."""

    def __init__(self, config: UNetConfig, level: int, time_width: int | None) -> None:
        super().__init__()
        c, out, last = config, config.widths[level], len(config.widths) - 1
        coarser, finer = c.widths[min(level + 1, last)], c.widths[max(level - 1, 0)]
        widths = [coarser] + [out] * c.blocks
        skips = [out] * c.blocks + [finer]
        self.res = nn.ModuleList(ResBlock(w + s, out, time_width, c.groups) for w, s in zip(widths, skips, strict=True))
        attended = c.blocks + 1 if c.attention[level] else 0
        self.attn = nn.ModuleList(SpatialTransformer(out, c.heads[level], c) for _ in range(attended))
        self.grow = Upsample(out) if level > 0 else None

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor | None, cond: Tensor) -> Tensor:
        for i in range(len(self.res)):
            x = self.block(i, x, skips.pop(), time, cond)
        if self.grow is None:
            return x
        return self.grow(x, size=(skips[-1].shape[2], skips[-1].shape[3]))

    def block(self, i: int, x: Tensor, skip: Tensor, time: Tensor | None, cond: Tensor) -> Tensor:
        """One residual block and its attention."""
        x = self.res[i](torch.cat([x, skip], dim=1), time)
        return self.attn[i](x, cond) if self.attn else x


class UNet(nn.Module):
    """Noisy latents x (b, channels, h, w), steps t (b,), text states cond (b, n, context) -> (b, out_channels, h, w).

    The output is noise, velocity or x0, as it was trained; `t` is ignored by a network without time input. A ControlNet
    adds to the skips and the middle: Zhang et al. (2302.05543), section 3.2.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        c = self.config = config
        levels = range(len(c.widths))
        time_width = 4 * c.widths[0] if c.time else None
        self.time = TimeMLP(c.widths[0], time_width) if time_width else None
        self.conv_in = Conv2d(c.channels, c.widths[0], 3, padding=1)
        self.down = nn.ModuleList(Down(c, level, time_width) for level in levels)
        self.mid = Middle(c, time_width)
        self.up = nn.ModuleList(Up(c, level, time_width) for level in reversed(levels))
        self.norm = nn.GroupNorm(c.groups, c.widths[0], 1e-5)
        self.conv_out = Conv2d(c.widths[0], c.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, control: Control | None = None) -> Tensor:
        x, time = self.stem(x, t)
        return self.head(self.body(x, time, cond, control), x, time, cond, control)

    def stem(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The first feature map (b, widths[0], h, w), and the time embedding."""
        return self.conv_in(x), None if self.time is None else self.time(t)

    def body(self, x: Tensor, time: Tensor | None, cond: Tensor, control: Control | None = None) -> Tensor:
        """From the first feature map to the input of the last block: nearly all of the work."""
        skips = [x]
        for down in self.down:
            skips += down(skips[-1], time, cond)
        h = self.mid(skips[-1], time, cond)
        if control is not None:
            if (got := len(control.down)) != len(skips):
                raise ValueError(f"control: got {got} residuals, expected one for each of {len(skips)} skips")
            skips = [skip + residual for skip, residual in zip(skips, control.down, strict=True)]
            h = h + control.middle
        for up in self.up[:-1]:
            h = up(h, skips, time, cond)
        for i in range(self.config.blocks):
            h = self.finest.block(i, h, skips.pop(), time, cond)
        return h

    def head(self, h: Tensor, x: Tensor, time: Tensor | None, cond: Tensor, control: Control | None = None) -> Tensor:
        """The last block, whose skip is the first feature map x, and the output."""
        skip = x if control is None else x + control.down[0]
        h = self.finest.block(self.config.blocks, h, skip, time, cond)
        return norm_silu_conv(self.norm, self.conv_out, h)

    @property
    def finest(self) -> Up:
        """The end of the up path."""
        return cast(Up, self.up[-1])
