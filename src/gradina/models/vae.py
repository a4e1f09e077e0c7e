"""The autoencoder: pictures to latents of 48 times fewer values, and back.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2112.10752), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradina.nn.attention import Attention
from gradina.nn.conv import Conv2d, Downsample, ResBlock, Upsample
from gradina.nn.ops import group_norm, norm_silu_conv


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The autoencoder's shape; Stable Diffusion's KL-f8 is the default."""

    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # residual blocks for each width
    groups: int = 32
    scale: float = 0.18215  # latents = scale · z, so that their standard deviation is about 1

    @property
    def factor(self) -> int:
        """How many times smaller latents are along each side."""
        return 2 ** (len(self.widths) - 1)


class Mid(nn.Module):
    """Residual block, attention over all pixels, residual block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.res1 = ResBlock(width, width, groups=groups, eps=1e-6)
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.attn = Attention(width, heads=1)
        self.res2 = ResBlock(width, width, groups=groups, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res1(x)
        h = self.attn(group_norm(self.norm, x).flatten(2).transpose(1, 2))
        x = x + h.transpose(1, 2).reshape(x.shape)
        return self.res2(x)


class Stage(nn.Module):
    """Residual blocks at one resolution, then a change of resolution."""

    def __init__(self, width: int, out_width: int, blocks: int, groups: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResBlock(width if i == 0 else out_width, out_width, groups=groups, eps=1e-6) for i in range(blocks)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x)
        return x if self.resample is None else self.resample(x)


class Encoder(nn.Module):
    """Pixels (b, 3, h, w) -> mean and log variance of z, (b, 2 · latent_channels, h/f, w/f)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c = config
        self.conv_in = Conv2d(c.channels, c.widths[0], 3, padding=1)
        self.stages = nn.ModuleList()
        for i, width in enumerate(c.widths):
            downsample = Downsample(width, one_sided=True) if i < len(c.widths) - 1 else None
            self.stages.append(Stage(c.widths[max(i - 1, 0)], width, c.blocks, c.groups, downsample))
        self.mid = Mid(c.widths[-1], c.groups)
        self.norm = nn.GroupNorm(c.groups, c.widths[-1], 1e-6)
        self.conv_out = Conv2d(c.widths[-1], 2 * c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.stages:
            x = stage(x)
        return norm_silu_conv(self.norm, self.conv_out, self.mid(x))


class Decoder(nn.Module):
    """z (b, latent_channels, h, w) -> pixels (b, 3, f·h, f·w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c = config
        widths = c.widths[::-1]
        self.conv_in = Conv2d(c.latent_channels, widths[0], 3, padding=1)
        self.mid = Mid(widths[0], c.groups)
        self.stages = nn.ModuleList()
        for i, width in enumerate(widths):
            upsample = Upsample(width) if i < len(widths) - 1 else None
            self.stages.append(Stage(widths[max(i - 1, 0)], width, c.blocks + 1, c.groups, upsample))
        self.norm = nn.GroupNorm(c.groups, widths[-1], 1e-6)
        self.conv_out = Conv2d(widths[-1], c.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z))
        for stage in self.stages:
            z = stage(z)
        return norm_silu_conv(self.norm, self.conv_out, z)


@dataclass(frozen=True)
class Gaussian:
    """The encoder's distribution of z: a mean and a log variance for each element."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std · noise. Source: Kingma & Welling 2014, section 2.4."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, summed over each example: (b,). Source: ibid., appendix B."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class AutoencoderKL(nn.Module):
    """Pixels in -1..1 (b, 3, h, w) <-> latents (b, 4, h/8, w/8), scaled to a standard deviation of about 1."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant = Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def posterior(self, pixels: Tensor) -> Gaussian:
        """The distribution of z, before scaling."""
        mean, logvar = self.quant(self.encoder(pixels)).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(-30, 20))

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of pixels: the mean, or a sample if noise is given."""
        gaussian = self.posterior(pixels)
        z = gaussian.mean if noise is None else gaussian.sample(noise)
        return z * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, about -1..1, not clamped."""
        return self.decoder(self.post_quant(latents / self.config.scale))
