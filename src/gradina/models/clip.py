"""CLIP's text tower, whose states the U-Net is conditioned on (Radford et al. 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradina.nn.linear import Linear
from gradina.nn.norm import LayerNorm
from gradina.nn.transformer import Activation, Block


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
