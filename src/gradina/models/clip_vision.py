"""CLIP's image towers, a vision transformer and a smaller one of convolutions, and their pair with the text tower."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.models.clip import TextConfig, TextTower
from gradina.nn.conv import Conv2d
from gradina.nn.linear import Linear
from gradina.nn.norm import LayerNorm
from gradina.nn.transformer import Activation, Block


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image tower's shape; ViT-L/14 is the default."""

    size: int = 224  # pixels
    patch: int = 14
    channels: int = 3
    width: int = 1024
    inner: int = 4096
    layers: int = 24
    heads: int = 16
    activation: Activation = "quick_gelu"
    projection: int = 768

    @property
    def positions(self) -> int:
        """How many patches a picture has."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """The shape of an image tower of convolutions."""

    size: int = 128  # pixels
    channels: int = 3
    widths: tuple[int, ...] = (16, 32, 64, 128, 192)  # at 1/2, 1/4, 1/8, ... of the side
    projection: int = 128

    def __post_init__(self) -> None:
        if not self.widths or self.size < 2 ** len(self.widths):
            raise ValueError(
                f"widths: got {len(self.widths)}, expected one or more that {self.size} pixels can be halved for"
            )

    @property
    def positions(self) -> int:
        """How many pixels the last feature map has."""
        return (self.size // 2 ** len(self.widths)) ** 2


class VisionTower(nn.Module):
    """Pictures (b, c, size, size), normalised -> one embedding each (b, projection)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        c = self.config = config
        self.cls = nn.Parameter(torch.randn(c.width) * c.width**-0.5)
        self.patch = Conv2d(c.channels, c.width, c.patch, stride=c.patch, bias=False)
        self.position = nn.Embedding((c.size // c.patch) ** 2 + 1, c.width)
        self.norm_in = LayerNorm(c.width)
        self.blocks = nn.ModuleList(
            Block(c.width, c.inner, c.heads, c.activation, causal=False) for _ in range(c.layers)
        )
        self.norm = LayerNorm(c.width)
        self.projection = Linear(c.width, c.projection, bias=False)
        nn.init.normal_(self.position.weight, std=c.width**-0.5)

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """The embeddings; of the `kept` patches (b, n) alone, which trains faster (Li et al., FLIP, 2212.00794)."""
        x = self.patch(pixels).flatten(2).transpose(1, 2) + self.position.weight[1:]
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([(self.cls + self.position.weight[0]).expand(len(x), 1, -1), x], dim=1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm(x[:, 0]))


class BatchNorm(nn.Module):
    """Each channel of (b, width, h, w) at mean 0 and variance 1: of the batch in training, else of its running moments.

    torch.nn's own also counts batches, in an integer that nothing reads and half precision could not hold.
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


class ConvTower(nn.Module):
    """An image tower of convolutions, which learn from fewer pictures, as they are equivariant to translation.

    Two of 3x3 at each resolution, then max pooling. Source: Simonyan & Zisserman, "Very Deep Convolutional
    Networks" (1409.1556), normalised; CLIP, too, comes with convolutional towers (Radford et al., section 2.4).
    """

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        c = self.config = config
        steps = [(wide, out) for a, b in pairwise(c.widths) for wide, out in ((a, b), (b, b))]
        self.convs = nn.ModuleList([Conv2d(c.channels, c.widths[0], 5, stride=2, padding=2, bias=False)])
        self.convs.extend(Conv2d(wide, out, 3, padding=1, bias=False) for wide, out in steps)
        self.norms = nn.ModuleList(BatchNorm(out) for out in (c.widths[0], *(out for _, out in steps)))
        self.projection = Linear(c.widths[-1], c.projection, bias=False)

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """The embeddings: means over all pixels of the last feature map, or over those (b, n) that are `kept` alone."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i and i % 2 == 0:
                x = F.max_pool2d(x, 2)
        x = x.flatten(2).transpose(1, 2)
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        return self.projection(x.mean(dim=1))


def vision_tower(config: VisionConfig | ConvConfig) -> VisionTower | ConvTower:
    """The image tower of that shape."""
    return VisionTower(config) if isinstance(config, VisionConfig) else ConvTower(config)


class CLIP(nn.Module):
    """The contrastive pair: how well each of some texts describes each of some pictures."""

    def __init__(self, text: TextConfig, vision: VisionConfig | ConvConfig) -> None:
        super().__init__()
        self.text = TextTower(text)
        self.vision = vision_tower(vision)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def texts(self, ids: Tensor) -> Tensor:
        """Embeddings of norm 1 for token ids (b, n): (b, projection)."""
        return F.normalize(self.text.embed(ids), dim=1)

    def pictures(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embeddings of norm 1 for pictures (b, c, size, size), or for some of their patches: (b, projection)."""
        return F.normalize(self.vision(pixels, kept), dim=1)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Scaled cosine similarities (texts, pictures), as in figure 3 of Radford et al. (2103.00020)."""
        return self.logit_scale.exp() * self.texts(ids) @ self.pictures(pixels).T
