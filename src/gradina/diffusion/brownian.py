"""Brownian paths over noise levels, for samplers whose steps overlap."""

from __future__ import annotations

import math
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
