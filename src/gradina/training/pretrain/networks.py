"""Networks that exist only in training: text tower and U-Net together, and a text tower with a small decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradina.models.clip import TextTower
from gradina.models.unet import TransformerBlock, UNet

SIDES = (4, 3, 2, 1)  # of the grid of queries; the largest that divides the latents


class TextToLatent(nn.Module):
    """The networks that diffusion trains: the text tower, and the U-Net that is conditioned on its states."""

    def __init__(self, text: TextTower, unet: UNet) -> None:
        super().__init__()
        self.text, self.unet = text, unet


class LatentPredictor(nn.Module):
    """Token ids (b, n) -> the mean latents (b, c, h, w) of pictures with such captions.

    At the highest noise level a U-Net can predict no more than that. Here a few queries attend to the text states, as
    the positions of a U-Net do, and each predicts a patch of the latents: the text tower is trained many times as
    quickly as through a U-Net.
    """

    def __init__(self, text: TextTower, shape: tuple[int, int, int], width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.text, (channels, height, latent_width) = text, shape
        self.side = next(side for side in SIDES if height % side == latent_width % side == 0)
        self.patch = channels, height // self.side, latent_width // self.side
        self.places = nn.Parameter(0.02 * torch.randn(self.side**2, width))  # the queries
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, text.config.width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels * self.patch[1] * self.patch[2])

    def forward(self, ids: Tensor) -> Tensor:
        states = self.text(ids[:, : int(self.text.ends(ids).max()) + 1])
        x = self.places.expand(len(ids), -1, -1)
        for block in self.blocks:
            x = block(x, states)
        channels, height, width = self.patch
        patches = self.out(self.norm(x)).view(len(ids), self.side, self.side, channels, height, width)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(ids), channels, self.side * height, self.side * width)
