"""Randomness as an argument: one seed per picture, drawn on the CPU, so that batching never changes a picture."""

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
        """New noise (b, *shape), independent of all before."""
        drawn = [torch.randn((1, *self.shape), generator=generator) for generator in self._generators]
        return torch.cat(drawn).to(self.device, self.dtype)

    def brownian(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """Unit noise (b, *shape) of one Brownian path per picture, for sigma != sigma_next: its increment over
        sqrt(|sigma - sigma_next|). Overlapping intervals share their noise; the order of calls changes nothing."""
        start, end = float(sigma), float(sigma_next)
        increments = [path(end) - path(start) for path in self._paths]
        return (torch.stack(increments) / math.sqrt(abs(start - end))).to(self.device, self.dtype)
