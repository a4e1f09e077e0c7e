"""Chance from arithmetic: a generator whose numbers look drawn by lot, and are the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MODULI = (30269, 30307, 30323)
FACTORS = (171, 172, 170)


class Random:
    """Three small generators whose sum is uniform; the whole repeats after 7 · 10^12 numbers.

    Source: Wichmann & Hill, "Algorithm AS 183", Applied Statistics 31 (1982).
    """

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"seed: got {seed!r}, expected a whole number")
        seed = abs(seed)
        self._state = []
        for modulus in MODULI:
            seed, rest = divmod(seed, modulus - 1)
            self._state.append(rest + 1)
        self._spare: float | None = None

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from low up to, but not including, high."""
        state = zip(self._state, FACTORS, MODULI, strict=True)
        self._state = [factor * x % modulus for x, factor, modulus in state]
        share = sum(x / modulus for x, modulus in zip(self._state, MODULI, strict=True)) % 1.0
        return low + (high - low) * share

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """A number from the bell curve. Source: Box & Muller, Annals of Mathematical Statistics 29 (1958)."""
        if self._spare is None:
            radius, angle = math.sqrt(-2 * math.log(1 - self.uniform())), 2 * math.pi * self.uniform()
            drawn, self._spare = radius * math.cos(angle), radius * math.sin(angle)
        else:
            drawn, self._spare = self._spare, None
        return mean + deviation * drawn

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        if count < 1:
            raise ValueError(f"count: got {count}, expected 1 or more")
        return int(self.uniform() * count)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in an order that is decided by chance. Source: Fisher & Yates 1938, as Durstenfeld 1964 does it."""
        mixed = list(items)
        for i in range(len(mixed) - 1, 0, -1):
            j = self.below(i + 1)
            mixed[i], mixed[j] = mixed[j], mixed[i]
        return mixed
