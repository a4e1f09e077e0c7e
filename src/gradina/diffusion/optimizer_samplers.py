"""Optimizers as samplers: a picture is found by descent, with the predicted noise as the gradient.

(x - denoised) / sigma is the derivative of the probability flow and, up to a factor, the gradient of the distance to
the pictures (Permenter & Yuan, 2306.04848). To follow it by as much as the noise level falls is Euler's method; an
optimizer also uses the gradients of earlier steps, and a learning-rate law decides the length of each step.

With zero terminal SNR the first level is 4096: x holds nothing of the picture, gradients there say nothing of later
ones, and all optimizers diverge. So Euler's method goes to the first level that networks are usually trained up to, and
the optimizer begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from gradina.diffusion.denoiser import Denoise
from gradina.diffusion.noise import Noise
from gradina.diffusion.step import Step, sigma_up

# The learning rates of n steps, up to a factor, from the noise levels (n + 1,); they are scaled to sum to the descent.
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
    """Steps along `direction(i, gradient)`; eta adds noise (DDIM, eq. 16); the last step is to denoised itself."""
    euler_steps = int((sigmas[:-1] > USUAL_START).sum()) if sigmas[0] > NO_SIGNAL else 0
    optimized = sigmas[euler_steps:]
    law = RATES[rates](optimized)
    law = torch.cat(
        [sigmas[:euler_steps] - sigmas[1 : euler_steps + 1], law * (optimized[0] - optimized[-1]) / law.sum()]
    )
    for i, ((sigma, sigma_next), rate) in enumerate(zip(pairwise(sigmas), law, strict=True)):
        denoised = denoise(x, sigma)
        up = sigma_up(sigma, sigma_next, eta)
        gradient = (x - denoised) / sigma
        update = gradient if i < euler_steps else direction(i - euler_steps, gradient)
        x = denoised if sigma_next == 0 else x - (rate + sigma_next - (sigma_next**2 - up**2).sqrt()) * update
        if up > 0:
            x = x + up * noise()
        yield Step(i, float(sigma_next), x, denoised)


def sgd(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rates: str = "levels", eta: float = 0.0
) -> Iterator[Step]:
    """Gradient descent; with the learning rates of "levels" it is Euler's method (Karras et al. 2206.00364)."""
    return _descent(denoise, x, sigmas, noise, lambda i, gradient: gradient, rates, eta)


def momentum(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rates: str = "levels", eta: float = 0.0, mu: float = 0.5
) -> Iterator[Step]:
    """Polyak 1964: the heavy ball; along the average of all gradients, each weighing mu times the next."""
    total = torch.zeros_like(x)

    def direction(i: int, gradient: Tensor) -> Tensor:
        total.mul_(mu).add_(gradient)
        return total / sum(mu**k for k in range(i + 1))

    return _descent(denoise, x, sigmas, noise, direction, rates, eta)


def nesterov(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rates: str = "levels", eta: float = 0.0, mu: float = 0.5
) -> Iterator[Step]:
    """Nesterov 1983, as Sutskever et al. 2013 have it: momentum that counts the newest gradient once more."""
    total = torch.zeros_like(x)

    def direction(i: int, gradient: Tensor) -> Tensor:
        total.mul_(mu).add_(gradient)
        return (gradient + mu * total) / sum(mu**k for k in range(i + 2))

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
    """Kingma & Ba 1412.6980, algorithm 1: along the average gradient, each element divided by its root mean square."""
    first, second = torch.zeros_like(x), torch.zeros_like(x)

    def direction(i: int, gradient: Tensor) -> Tensor:
        first.lerp_(gradient, 1 - betas[0])
        second.lerp_(gradient**2, 1 - betas[1])
        mean, size = first / (1 - betas[0] ** (i + 1)), second / (1 - betas[1] ** (i + 1))
        return mean / (size.sqrt() + 1e-8)

    return _descent(denoise, x, sigmas, noise, direction, rates, eta)
