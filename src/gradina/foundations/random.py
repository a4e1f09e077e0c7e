"""A pseudorandom generator: the same seed gives the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MODULI = (30269, 30307, 30323)
MULTIPLIERS = (171, 172, 170)


class Random:
    """Three linear congruential generators whose sum is uniform, of period 7 · 10^12 (Wichmann & Hill 1982, AS 183)."""

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"seed: got {seed!r}, expected an integer")
        seed = abs(seed)
        self._state = []
        for modulus in MODULI:
            seed, rest = divmod(seed, modulus - 1)
            self._state.append(rest + 1)
        self._spare: float | None = None

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A uniform sample from [low, high)."""
        state = zip(self._state, MULTIPLIERS, MODULI, strict=True)
        self._state = [factor * x % modulus for x, factor, modulus in state]
        fraction = sum(x / modulus for x, modulus in zip(self._state, MODULI, strict=True)) % 1.0
        return low + (high - low) * fraction

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """A sample of a normal distribution. Source: Box & Muller, Annals of Mathematical Statistics 29 (1958)."""
        if self._spare is None:
            radius, angle = math.sqrt(-2 * math.log(1 - self.uniform())), 2 * math.pi * self.uniform()
            sample, self._spare = radius * math.cos(angle), radius * math.sin(angle)
        else:
            sample, self._spare = self._spare, None
        return mean + std * sample

    def randrange(self, stop: int) -> int:
        """An integer from 0 to stop - 1."""
        if stop < 1:
            raise ValueError(f"stop: got {stop}, expected 1 or more")
        return int(self.uniform() * stop)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order. Source: Fisher & Yates 1938; Durstenfeld 1964."""
        shuffled = list(items)
        for i in range(len(shuffled) - 1, 0, -1):
            j = self.randrange(i + 1)
            shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
        return shuffled
