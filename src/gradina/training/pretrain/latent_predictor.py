"""A stand-in for the U-Net, from which a text tower learns what its words look like, before any noise is told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradina.models.clip import TextTower
from gradina.models.unet import TransformerBlock

SIDES = (4, 3, 2, 1)  # of the grid of places that ask; the largest that fits


class Reader(nn.Module):
    """Token ids (b, n) -> the latents (b, c, h, w) that pictures with such captions have on average.

    At the highest noise level a U-Net can say no more than that. Here a few places ask the text states, as its places
    do, and each says its part of the latents: words learn from it many times as quickly as from a U-Net.
    """

    def __init__(self, text: TextTower, shape: tuple[int, int, int], width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.text, (channels, high, wide) = text, shape
        self.side = next(side for side in SIDES if high % side == wide % side == 0)
        self.part = channels, high // self.side, wide // self.side
        self.places = nn.Parameter(0.02 * torch.randn(self.side**2, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, text.config.width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels * (high // self.side) * (wide // self.side))

    def forward(self, ids: Tensor) -> Tensor:
        states = self.text(ids[:, : int(self.text.ends(ids).max()) + 1])
        x = self.places.expand(len(ids), -1, -1)
        for block in self.blocks:
            x = block(x, states)
        parts = self.out(self.norm(x)).view(len(ids), self.side, self.side, *self.part)
        return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(ids), self.part[0], *(self.side * n for n in self.part[1:]))
