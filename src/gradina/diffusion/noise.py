"""Randomness as an argument: one seed per picture, drawn on the CPU, so that batching never changes a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Brownian:
    """A Brownian path W(sigma) of `shape`, float64: W(0) = 0 and W(b) - W(a) ~ N(0, |b - a|).

    A virtual tree (Li et al. 2001.01328, algorithm 3): the same seed gives the same path whatever is asked of it. The
    levels low .. high are halved `depth` times in log sigma by Brownian bridges, and joined by lines below that.
    """

    seed: int
    shape: tuple[int, ...]
    low: float = 1e-4
    high: float = 1e5
    depth: int = 18

    def __call__(self, sigma: float) -> Tensor:
        """The path at noise level sigma, clamped to low .. high."""
        sigma = min(max(sigma, self.low), self.high)
        a, b = self.low, self.high
        at_a = self._unit(0) * math.sqrt(a)
        at_b = at_a + self._unit(1) * math.sqrt(b - a)
        node = 2
        for _ in range(self.depth):
            middle = math.sqrt(a * b)
            bridge = math.sqrt((middle - a) * (b - middle) / (b - a))
            at_middle = torch.lerp(at_a, at_b, (middle - a) / (b - a)) + bridge * self._unit(node)
            if sigma < middle:
                b, at_b, node = middle, at_middle, 2 * node
            else:
                a, at_a, node = middle, at_middle, 2 * node + 1
        return torch.lerp(at_a, at_b, (sigma - a) / (b - a))

    def _unit(self, node: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(_mixed(_mixed(self.seed) + node))
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def _mixed(z: int) -> int:
    """A 64-bit number in which every bit depends on all of z (splitmix64, Steele et al. 2014)."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


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
