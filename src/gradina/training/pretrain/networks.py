"""Networks that exist only in training: text tower and U-Net together, and text towers that predict latents."""

from __future__ import annotations

import math

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
        return joined(self.out(self.norm(x)), self.patch)


class RegisterPredictor(nn.Module):
    """The same from the states of the text tower's last positions, its registers, by a linear layer alone.

    So the text tower itself has to know the pictures, and a U-Net that attends to its states can read them there.
    Captions have to end before the registers. Source of the name: Darcet et al., "Vision Transformers Need Registers"
    (2309.16588); there, too, they are positions without content of their own.
    """

    def __init__(self, text: TextTower, shape: tuple[int, int, int], registers: int) -> None:
        super().__init__()
        self.text, self.registers, side = text, registers, math.isqrt(registers)
        self.patch = shape[0], shape[1] // side, shape[2] // side
        self.out = nn.Linear(text.config.width, math.prod(self.patch))

    def forward(self, ids: Tensor) -> Tensor:
        return joined(self.out(self.text(ids)[:, -self.registers :]), self.patch)


def joined(patches: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """A square of patches (b, n * n, c * h * w), row by row, as one map: (b, c, n * h, n * w)."""
    batch, side, (channels, height, width) = len(patches), math.isqrt(patches.shape[1]), patch
    patches = patches.view(batch, side, side, channels, height, width)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side * height, side * width)
