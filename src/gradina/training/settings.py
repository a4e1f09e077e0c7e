"""Settings of training as frozen, checked data; without torch, so that the command line can read them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from gradina.errors import RecipeError


class Range(NamedTuple):
    """The values that a field may have besides None, as metadata of its type."""

    holds: Callable[[Any], bool]
    expected: str


class Option(NamedTuple):
    """How a field is offered on the command line, as metadata of its type; True as `default` shows the field's own."""

    default: str | bool
    help: str
    minimum: int | None = None
    short: tuple[str, ...] = ()  # further flags


POSITIVE = Range(lambda x: 0 < x < math.inf, "a number above 0")
NOT_NEGATIVE = Range(lambda x: 0 <= x < math.inf, "0, or a number above it")
MORE_THAN_0 = Range(lambda x: x > 0, "more than 0")
SHARE = Range(lambda x: 0 <= x <= 1, "0 to 1")
BETAS = Range(lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x), "two numbers from 0 to below 1")
INTERVAL = Range(lambda x: len(x) == 2 and 0 <= x[0] <= x[1], "the lowest and the highest sigma")
PUBLISHED = "as the method's authors"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Data whose fields are checked against the ranges in their types. Raises RecipeError."""

    def __post_init__(self) -> None:
        for name, allowed in _ranges(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if value is not None and not allowed.holds(value):
                raise RecipeError(f"{name}: got {value}, expected {allowed.expected}")


@cache
def _ranges(kind: type) -> list[tuple[str, Range]]:
    """The ranges of a dataclass's fields, by name."""
    hints = get_type_hints(kind, include_extras=True)
    found = [(name, data) for name, hint in hints.items() for data in getattr(hint, "__metadata__", ())]
    return [(name, data) for name, data in found if isinstance(data, Range)]


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """How a network is trained: steps, batches, optimizer, learning rate."""

    steps: Annotated[int, POSITIVE, Option(PUBLISHED, "Training steps.", minimum=1, short=("-s",))]
    batch: Annotated[int, POSITIVE, Option("1", "Pictures at once.", minimum=1)]
    lr: Annotated[float, POSITIVE, Option(PUBLISHED, "Learning rate.")]
    warmup: Annotated[int, Option("0", "Steps in which the learning rate rises.", minimum=0)] = 100
    decay: Annotated[float, SHARE] = 0.5  # share of the steps, at the end, in which lr falls to 0 along a cosine
    weight_decay: float = 0.01
    betas: Annotated[tuple[float, float], BETAS] = (0.9, 0.99)
    clip: Annotated[float, POSITIVE] = 1.0  # largest norm of the gradient
    ema: Annotated[float, SHARE, Option(PUBLISHED, "Decay of the weights' average; 0: none.")] = 0.999
    accumulate: Annotated[int, POSITIVE, Option(PUBLISHED, "Batches for one step.", minimum=1)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast
    optimizer: Literal["muon"] | None = None  # None: AdamW

    def lr_at(self, step: int) -> float:
        """The learning rate of a step (counted from 0): warm-up, constant, cosine to 0."""
        tail = max(1, round(self.decay * self.steps))
        into = max(0, step - (self.steps - tail)) / tail
        fall = 0.5 * (1 + math.cos(math.pi * into)) if self.decay else 1.0
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * fall


@dataclass(frozen=True, kw_only=True)
class NoiseLaw(Checked):
    """How diffusion training draws noise and its levels, and how it weighs their errors.

    Levels are those of timesteps drawn uniformly from the schedule's that lie in `interval`, times `shift`.
    """

    min_snr: Annotated[float | None, POSITIVE, Option("off", "Weight losses by min-SNR of this gamma; 5 is usual.")] = (
        None
    )
    noise_offset: Annotated[float, NOT_NEGATIVE, Option("0", "Noise shared by all pixels, for dark and light.")] = 0.0
    shift: Annotated[float | None, MORE_THAN_0, Option("1", "Multiply the noise levels (sigma) by this.")] = None
    interval: Annotated[tuple[float, float] | None, INTERVAL, Option("all", "Noise levels (sigma) to train at.")] = None
