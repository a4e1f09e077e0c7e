"""Interleaved timing: whatever disturbs the machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Runner = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def ratios(self, other: Times) -> Times:
        """other / self, round by round: how many times as long the other took."""
        return Times(tuple(b / a for a, b in zip(self.seconds, other.seconds, strict=True)))


@dataclass(frozen=True)
class Failed:
    """A backend that raised an error; it has a row of its own in the report."""

    reason: str

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """From the last line of the error's message."""
        message = str(error).strip() or repr(error)
        return cls(f"{type(error).__name__}: {message.splitlines()[-1][-200:]}")


def medians(runners: Mapping[str, Runner], rounds: int, digits: int = 4) -> dict[str, float]:
    """Median seconds of each runner, interleaved. Raises RuntimeError if one fails."""
    found = {}
    for name, times in time_interleaved(runners, rounds).items():
        if isinstance(times, Failed):
            raise RuntimeError(f"{name}: {times.reason}")
        found[name] = round(times.median, digits)
    return found


def time_interleaved(
    runners: Mapping[str, Runner | Failed], rounds: int, warmup: int = 1
) -> dict[str, Times | Failed]:  # fmt: skip
    """Runs each once per round, in alternating order, after `warmup` rounds; a runner that fails drops out."""
    names, seconds = list(runners), {name: list[float]() for name in runners}
    active = dict(runners)
    for i in range(warmup + rounds):
        for name in names if i % 2 else reversed(names):
            runner = active[name]
            if isinstance(runner, Failed):
                continue
            start = time.perf_counter()
            try:
                runner()
            except Exception as error:
                active[name] = Failed.of(error)
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: x if isinstance(x, Failed) else Times(tuple(seconds[name])) for name, x in active.items()}
