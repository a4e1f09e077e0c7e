"""Timing in turns: what disturbs the machine disturbs everyone alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Runner = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of the same work, again and again."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half are quicker."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter is quicker than the first, a quarter slower than the second."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def beside(self, other: Times) -> Times:
        """How many times as long the other took, turn by turn: for its median and quartiles."""
        return Times(tuple(b / a for a, b in zip(self.seconds, other.seconds, strict=True)))


@dataclass(frozen=True)
class Failed:
    """Somebody who could not do it: a row of its own, and no more."""

    why: str

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """By its last words."""
        said = str(error).strip() or repr(error)
        return cls(f"{type(error).__name__}: {said.splitlines()[-1][-200:]}")


def medians(runners: Mapping[str, Runner], rounds: int, digits: int = 4) -> dict[str, float]:
    """Seconds of each by a race of all, who must not fail: their medians."""
    found = {}
    for name, times in race(runners, rounds).items():
        if isinstance(times, Failed):
            raise RuntimeError(f"{name}: {times.why}")
        found[name] = round(times.median, digits)
    return found


def race(runners: Mapping[str, Runner | Failed], rounds: int, warm: int = 1) -> dict[str, Times | Failed]:
    """Lets everyone run once in each round, in changing order, after `warm` rounds that do not count.

    Who fails drops out, and the others go on.
    """
    names, taken = list(runners), {name: list[float]() for name in runners}
    now = dict(runners)
    for turn in range(warm + rounds):
        for name in names if turn % 2 else reversed(names):
            runner = now[name]
            if isinstance(runner, Failed):
                continue
            start = time.perf_counter()
            try:
                runner()
            except Exception as error:
                now[name] = Failed.of(error)
            if turn >= warm:
                taken[name].append(time.perf_counter() - start)
    return {name: one if isinstance(one, Failed) else Times(tuple(taken[name])) for name, one in now.items()}
