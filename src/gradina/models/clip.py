"""CLIP: a text tower and an image tower, trained until a caption and its picture have the same embedding.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2103.00020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.attention import Attention
from gradina.nn.conv import Conv2d
from gradina.nn.linear import Linear
from gradina.nn.norm import BatchNorm, LayerNorm

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower's shape; SD 1 is the default."""

    vocabulary: int = 49408
    length: int = 77  # tokens
    width: int = 768
    inner: int = 3072
    layers: int = 12
    heads: int = 12
    activation: Activation = "quick_gelu"
    projection: int | None = None  # width of the embedding shared with pictures; None: not there
    eos: int = 49407  # the token whose state stands for the whole text


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


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Block(nn.Module):
    """One transformer layer with the norms in front: (b, n, width) -> (b, n, width)."""

    def __init__(self, width: int, inner: int, heads: int, activation: Activation, causal: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.norm2 = LayerNorm(width)
        self.proj_in = Linear(width, inner)
        self.proj_out = Linear(inner, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.proj_out(self.activation(self.proj_in(self.norm2(x))))


class TextTower(nn.Module):
    """Token ids (b, n) -> the text states that condition the U-Net, one for each token (b, n, width)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = self.config = config
        self.token = nn.Embedding(c.vocabulary, c.width)
        self.position = nn.Embedding(c.length, c.width)
        self.blocks = nn.ModuleList(
            Block(c.width, c.inner, c.heads, c.activation, causal=True) for _ in range(c.layers)
        )
        self.norm = LayerNorm(c.width)
        self.projection = Linear(c.width, c.projection, bias=False) if c.projection else None
        nn.init.normal_(self.token.weight, std=0.02)  # as in CLIP
        nn.init.normal_(self.position.weight, std=0.01)

    def forward(self, ids: Tensor, skip: int = 0) -> Tensor:
        """States after the final norm, leaving out the last `skip` layers (1: the "penultimate" state)."""
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks[: len(self.blocks) - skip]:
            x = block(x)
        return self.norm(x)

    def embed(self, ids: Tensor) -> Tensor:
        """One embedding for each text, (b, projection), from the state at the first end-of-text token."""
        if self.projection is None:
            raise ValueError("this text tower has no projection; build it with TextConfig(projection=...)")
        end = self.ends(ids)
        return self.projection(self(ids[:, : int(end.max()) + 1])[torch.arange(len(ids), device=ids.device), end])

    def ends(self, ids: Tensor) -> Tensor:
        """Where each text ends, (b,): attention looks back only, so what comes later changes nothing before it."""
        return (ids == self.config.eos).int().argmax(dim=1)


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
        """The embeddings; of the patches (b, n) that are `kept` alone, which trains faster.

        Source: Li et al. 2023, "Scaling Language-Image Pre-training via Masking" (2212.00794).
        """
        x = self.patch(pixels).flatten(2).transpose(1, 2) + self.position.weight[1:]
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([(self.cls + self.position.weight[0]).expand(len(x), 1, -1), x], dim=1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm(x[:, 0]))


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
        """Scaled cosine similarities, (texts, pictures); its transpose reads them the other way.

        Source: Radford et al., figure 3.
        """
        return self.logit_scale.exp() * self.texts(ids) @ self.pictures(pixels).T
