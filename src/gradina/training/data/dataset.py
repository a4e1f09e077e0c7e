"""What training reads: a dataset of pictures and captions, its splits, and random draws that depend on a key alone."""

from __future__ import annotations

import hashlib
import math
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Split = Literal["train", "pairs", "held out"]  # for all networks, for CLIP alone, for none


class Dataset(Protocol):
    """Pictures of one size, by row, and captions for them."""

    def __len__(self) -> int: ...

    def pixels(self, rows: Tensor) -> Tensor:
        """The pictures of `rows` (b,) as (b, 3, h, w) in -1..1; a row is always the same picture."""

    def augmented(self, rows: Tensor, degrees: float, key: torch.Generator) -> Tensor:
        """The same with random rotation by up to `degrees`, stretching and tinting."""

    def captions(self, rows: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        """A caption for each picture, worded at random, and a mask (b, b): which captions match which pictures."""

    def contrastive_rows(self, count: int, key: torch.Generator) -> Tensor:
        """Rows (count,) for a contrastive batch, with hard negatives where the dataset has some."""

    def texts(self) -> list[str]:
        """All parts of captions, to train a tokenizer on."""

    def phrases(self) -> tuple[tuple[str, ...], ...]:
        """Names of the classes, then their continuations, from which a caption can be composed."""

    def class_ids(self, rows: Tensor) -> Tensor:
        """The class of each picture (b,), an index into the names; -1: none of them alone."""


def augment(pixels: Tensor, degrees: float, key: torch.Generator) -> Tensor:
    """Pictures (b, 3, h, w) rotated by up to `degrees`, stretched, brightened and saturated by up to 20 % each."""
    if not degrees:
        return pixels
    angle, wide, high, light, colour = 2 * torch.rand(5, len(pixels), generator=key) - 1
    angle = angle * math.radians(degrees)
    rows = torch.stack([angle.cos() * (1 + wide / 5), -angle.sin(), angle.sin(), angle.cos() * (1 + high / 5)], dim=1)
    theta = torch.cat([rows.view(-1, 2, 2), torch.zeros(len(pixels), 2, 1)], dim=2)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    warped = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    grey = warped.mean(dim=1, keepdim=True)
    tinted = grey + (warped - grey) * (1 + colour / 5).view(-1, 1, 1, 1) + (light / 5).view(-1, 1, 1, 1)
    return tinted.clamp(-1, 1)


def generator(*key: object) -> torch.Generator:
    """A random generator seeded by `key` alone: a batch is a function of its step, so a run can resume."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
