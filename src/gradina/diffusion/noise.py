"""Randomness as an argument: one seed per picture, drawn on the CPU, so that a batch never changes a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradina.diffusion.brownian import Brownian


class Noise:
    """A source of unit Gaussian noise for a batch; picture k draws from its own CPU generator, seeded with seeds[k].

    The first `noise()` is what `torch.randn((1, c, h, w), generator=manual_seed(seed))` gives for each seed, and later
    calls continue those generators, as diffusers does with a list of generators.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._paths = [Brownian(seed, shape) for seed in seeds]

    def __call__(self) -> Tensor:
        """Fresh noise (b, *shape), independent of all before."""
        drawn = [torch.randn((1, *self.shape), generator=generator) for generator in self._generators]
        return torch.cat(drawn).to(self.device, self.dtype)

    def brownian(self, a: float | Tensor, b: float | Tensor) -> Tensor:
        """Unit noise (b, *shape) of one Brownian path per picture between the noise levels a != b: its increment over
        sqrt(|a - b|). Intervals that overlap share their noise; the order of the questions changes nothing."""
        a, b = float(a), float(b)
        increments = [path(b) - path(a) for path in self._paths]
        return (torch.stack(increments) / math.sqrt(abs(a - b))).to(self.device, self.dtype)
