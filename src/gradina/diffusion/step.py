"""One step of a sampler, and what the samplers share.

In the coordinates x = x0 + sigma * n the probability flow is dx/dsigma = (x - denoised) / sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: its index, the noise level and the state after it, and the denoised estimate within it."""

    i: int
    sigma: float
    x: Tensor  # (b, c, h, w)
    denoised: Tensor  # (b, c, h, w)
    pictures: range = range(0)  # the indices in a request of the batch; samplers leave it empty

    @property
    def latents(self) -> Tensor:
        """x in variance-preserving units, as diffusers' pipelines have their latents."""
        return variance_preserving(self.x, self.sigma)


# (denoise, x, sigmas, noise, **options) -> Steps; x (b, c, h, w) is at sigmas[0], sigmas (n + 1,) fall; n steps.
Sampler = Callable[..., Iterator[Step]]


def variance_preserving(x: Tensor, sigma: float) -> Tensor:
    """x = x0 + sigma * n (b, c, h, w), divided so that its variance is one for x0 of variance one."""
    return x / (1 + sigma**2) ** 0.5


def step_to(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, up: Tensor | None = None) -> Tensor:
    """x (b, c, h, w) moved straight towards `denoised`, to sigma_next, or below it to leave room for `up` of noise."""
    down = sigma_next if up is None else (sigma_next**2 - up**2).sqrt()
    return denoised + down / sigma * (x - denoised)


def sigma_up(sigma: Tensor, sigma_next: Tensor, eta: float) -> Tensor:
    """The standard deviation of the noise added in an ancestral step (DDIM, eq. 16; at eta 1 that of DDPM)."""
    return eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
