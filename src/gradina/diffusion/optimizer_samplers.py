"""The optimizers as samplers: a picture is looked for by descent, and the predicted noise is the gradient.

(x - denoised) / sigma is the slope of the probability flow, and, up to a factor, of the distance to the pictures
(Permenter & Yuan, 2306.04848). Whoever follows it by as much as the noise level falls is Euler's method; an optimizer
follows the slopes of the steps before, too, and a law says how far it goes each time.

With zero terminal SNR the first level is 4096: nothing of the picture is in x, gradients say nothing of later ones, and
all optimizers diverge. So Euler's method walks to the first level that networks are usually trained up to, and the
optimizer begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from gradina.diffusion.denoiser import Denoise
from gradina.diffusion.noise import Noise
from gradina.diffusion.step import Step, fresh

# How the learning rates of n steps behave, from the noise levels (n + 1,); together they are all of the way down.
RATES: dict[str, Callable[[Tensor], Tensor]] = {
    "levels": lambda sigmas: sigmas[:-1] - sigmas[1:],
    "constant": lambda sigmas: torch.ones_like(sigmas[:-1]),
    "proportional": lambda sigmas: sigmas[:-1],
    "cosine": lambda sigmas: 1 + torch.cos(torch.linspace(0, torch.pi, 2 * len(sigmas) - 1)[1::2]).to(sigmas),
}

NO_SIGNAL = 1000.0  # sigma above which a schedule has zero terminal SNR (2305.08891)
USUAL_START = 15.0  # sigma: the highest level of Stable Diffusion's own schedule is 14.6


def _descent(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    direction: Callable[[int, Tensor], Tensor],
    rates: str,
    eta: float,
) -> Iterator[Step]:
    """Steps along `direction(i, slope)`; eta puts noise back (DDIM, eq. 16); the last step is the guess itself."""
    before = int((sigmas[:-1] > USUAL_START).sum()) if sigmas[0] > NO_SIGNAL else 0  # steps of Euler's method
    optimized = sigmas[before:]
    law = RATES[rates](optimized)
    law = torch.cat([sigmas[:before] - sigmas[1 : before + 1], law * (optimized[0] - optimized[-1]) / law.sum()])
    for i, ((sigma, to), rate) in enumerate(zip(pairwise(sigmas), law, strict=True)):
        denoised = denoise(x, sigma)
        up = fresh(sigma, to, eta)
        slope = (x - denoised) / sigma
        ahead = slope if i < before else direction(i - before, slope)
        x = denoised if to == 0 else x - (rate + to - (to**2 - up**2).sqrt()) * ahead
        if up > 0:
            x = x + up * noise()
        yield Step(i, float(to), x, denoised)


def sgd(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rates: str = "levels", eta: float = 0.0
) -> Iterator[Step]:
    """Gradient descent; with the learning rates of "levels" it is Euler's method (Karras et al. 2206.00364)."""
    return _descent(denoise, x, sigmas, noise, lambda i, slope: slope, rates, eta)


def momentum(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rates: str = "levels", eta: float = 0.0, mu: float = 0.5
) -> Iterator[Step]:
    """Polyak 1964: the heavy ball; along the average of all slopes, each with mu times the weight of the next."""
    total = torch.zeros_like(x)

    def direction(i: int, slope: Tensor) -> Tensor:
        total.mul_(mu).add_(slope)
        return total / sum(mu**k for k in range(i + 1))

    return _descent(denoise, x, sigmas, noise, direction, rates, eta)


def nesterov(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rates: str = "levels", eta: float = 0.0, mu: float = 0.5
) -> Iterator[Step]:
    """Nesterov 1983, as Sutskever et al. 2013 have it: momentum that counts the newest slope once more."""
    total = torch.zeros_like(x)

    def direction(i: int, slope: Tensor) -> Tensor:
        total.mul_(mu).add_(slope)
        return (slope + mu * total) / sum(mu**k for k in range(i + 2))

    return _descent(denoise, x, sigmas, noise, direction, rates, eta)


def adam(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    rates: str = "levels",
    eta: float = 0.0,
    betas: tuple[float, float] = (0.5, 0.99),
) -> Iterator[Step]:
    """Kingma & Ba 1412.6980, algorithm 1: along the average slope, each number over its usual size."""
    first, second = torch.zeros_like(x), torch.zeros_like(x)

    def direction(i: int, slope: Tensor) -> Tensor:
        first.lerp_(slope, 1 - betas[0])
        second.lerp_(slope**2, 1 - betas[1])
        mean, size = first / (1 - betas[0] ** (i + 1)), second / (1 - betas[1] ** (i + 1))
        return mean / (size.sqrt() + 1e-8)

    return _descent(denoise, x, sigmas, noise, direction, rates, eta)
