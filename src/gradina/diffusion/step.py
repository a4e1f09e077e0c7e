"""One step of a walk from noise to a picture, and what the walks share.

In the coordinates x = x0 + sigma * n the probability flow is dx/dsigma = (x - denoised) / sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: its number from 0, the noise level and the state after it, and the guess made on the way."""

    i: int
    sigma: float
    x: Tensor  # (b, c, h, w)
    denoised: Tensor  # (b, c, h, w)


# (denoise, x, sigmas, noise, **options) -> Steps; x (b, c, h, w) stands at sigmas[0], sigmas (n + 1,) fall; n steps.
Sampler = Callable[..., Iterator[Step]]


def step_to(x: Tensor, guess: Tensor, sigma: Tensor, to: Tensor, up: Tensor | None = None) -> Tensor:
    """x moved from noise level sigma to `to`, straight towards the guess; of that level, `up` is left to new noise."""
    down = to if up is None else (to**2 - up**2).sqrt()
    return guess + down / sigma * (x - guess)


def fresh(sigma: Tensor, to: Tensor, eta: float) -> Tensor:
    """The standard deviation of the new noise in a step from sigma to `to` (DDIM, eq. 16; at eta 1 that of DDPM)."""
    return eta * to * (1 - (to / sigma) ** 2).sqrt()
