"""The solvers: from noise to a picture by denoising at falling noise levels; and the table SAMPLERS.

One step, `step_to`, serves most methods: they differ in the estimate that they move towards, and in the noise they add.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gradina.diffusion.denoiser import Denoise
from gradina.diffusion.noise import Noise
from gradina.diffusion.optimizer_samplers import adam, momentum, nesterov, sgd
from gradina.diffusion.prediction import PREDICTIONS, Prediction
from gradina.diffusion.schedule import Final
from gradina.diffusion.step import Sampler, Step, sigma_up, step_to

History = list[tuple[Tensor, Tensor]]  # (sigma, denoised) of the last steps, newest first


def _midway(history: History, sigma_next: Tensor) -> Tensor:
    """Denoised half-way to sigma_next, extrapolated in log sigma from the last two (DPM-Solver++, algorithm 2)."""
    if len(history) < 2 or sigma_next == 0:
        return history[0][1]
    (sigma, denoised), (old_sigma, old_denoised) = history
    r = (old_sigma / sigma).log() / (sigma / sigma_next).log()
    return denoised + (denoised - old_denoised) / (2 * r)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2206.00364, algorithm 1 without its second half: Euler's method."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        x = step_to(x, denoised, sigma, sigma_next)
        yield Step(i, float(sigma_next), x, denoised)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """Song et al. 2010.02502, DDIM, eq. 12: in these coordinates it is Euler's method; eta adds noise (eq. 16)."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        up = sigma_up(sigma, sigma_next, eta)
        x = step_to(x, denoised, sigma, sigma_next, up)
        if up > 0:
            x = x + up * noise()
        yield Step(i, float(sigma_next), x, denoised)


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """Ho et al. 2006.11239, algorithm 2, with the smaller variance: in these coordinates it is DDIM at eta 1."""
    return ddim(denoise, x, sigmas, noise, eta)


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion `sample_euler_ancestral`: Euler's method to a lower level, and new noise: DDIM at eta 1."""
    return ddim(denoise, x, sigmas, noise, eta)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2206.00364, algorithm 1: Heun's method; the derivatives at both ends of a step, two calls each."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        derivative = (x - denoised) / sigma
        if sigma_next > 0:
            x_euler = x + (sigma_next - sigma) * derivative
            derivative = (derivative + (x_euler - denoise(x_euler, sigma_next)) / sigma_next) / 2
        x = x + (sigma_next - sigma) * derivative
        yield Step(i, float(sigma_next), x, denoised)


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 4) -> Iterator[Step]:
    """k-diffusion `sample_lms`: linear multistep (Adams-Bashforth) over uneven noise levels, up to order 4."""
    levels, derivatives = sigmas.tolist(), list[Tensor]()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        derivatives = [(x - denoised) / sigma, *derivatives[: order - 1]]
        weights = _adams_weights(levels[i - len(derivatives) + 1 : i + 1][::-1], levels[i + 1])
        x = x + sum(w * d for w, d in zip(weights, derivatives, strict=True))
        yield Step(i, float(sigma_next), x, denoised)


def _adams_weights(knots: list[float], end: float) -> list[float]:
    """The integrals from knots[0] to `end` of the Lagrange polynomials over up to 4 knots (Gauss-Legendre, exact)."""
    middle, half = (knots[0] + end) / 2, (end - knots[0]) / 2
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    others = [[k for k in knots if k != knot] for knot in knots]
    return [
        half * sum(math.prod((node - k) / (knot - k) for k in rest) for node in nodes)
        for knot, rest in zip(knots, others, strict=True)
    ]


ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, prediction: Prediction = PREDICTIONS["eps"]
) -> Iterator[Step]:
    """Liu et al. 2202.09778, PNDM, with the linear multistep of eq. 12 throughout (PLMS): SD's first sampler.

    It averages network outputs, of whichever prediction; its first step takes two calls. Averaging v is what diffusers
    does; the paper averages the noise. It loses an order of convergence: in 20 steps the error is six times that of
    averaged noise, on a mixture of Gaussians.
    """
    outputs = list[Tensor]()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        outputs = [prediction.output(x, sigma, denoised), *outputs[:3]]
        output = sum((w * o for w, o in zip(ADAMS[len(outputs) - 1], outputs, strict=True)), torch.zeros_like(x))
        if i == 0 and len(sigmas) > 2:
            x_euler = step_to(x, denoised, sigma, sigma_next)
            output = (output + prediction.output(x_euler, sigma_next, denoise(x_euler, sigma_next))) / 2
        x = step_to(x, prediction.denoised(x, sigma, output), sigma, sigma_next)
        yield Step(i, float(sigma_next), x, denoised)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Lu et al. 2211.01095, DPM-Solver++(2M), algorithm 2: towards denoised half-way, extrapolated from two steps."""
    history: History = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        history = [(sigma, denoised), *history[:1]]
        x = step_to(x, _midway(history, sigma_next), sigma, sigma_next)
        yield Step(i, float(sigma_next), x, denoised)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """Lu et al. 2211.01095, SDE-DPM-Solver++(2M), eq. 19: DPM-Solver++(2M) with new noise in each step."""
    history: History = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        history = [(sigma, denoised), *history[:1]]
        up = sigma_up(sigma, sigma_next, eta)
        x = step_to(x, _midway(history, sigma_next), sigma, sigma_next, up)
        if up > 0:
            x = x + up * noise()
        yield Step(i, float(sigma_next), x, denoised)


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion `sample_dpmpp_sde`, SDE-DPM-Solver++(2S), r = 1/2: two calls a step, noise of one Brownian path."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised_mid = denoised = denoise(x, sigma)
        if sigma_next > 0:
            sigma_mid = (sigma * sigma_next).sqrt()
            up = sigma_up(sigma, sigma_mid, eta)
            x_mid = step_to(x, denoised, sigma, sigma_mid, up)
            denoised_mid = denoise(x_mid + up * noise.brownian(sigma, sigma_mid) if up > 0 else x_mid, sigma_mid)
        up = sigma_up(sigma, sigma_next, eta)
        x = step_to(x, denoised_mid, sigma, sigma_next, up)
        if up > 0:
            x = x + up * noise.brownian(sigma, sigma_next)
        yield Step(i, float(sigma_next), x, denoised)


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Zhao et al. 2302.04867, UniPC of order 2 with B2(h): each call first corrects the step that led to it."""
    history: History = []
    x_old = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if history:
            x = step_to(x_old, _corrected(history, sigma, denoised), history[0][0], sigma)
        history = [(sigma, denoised), *history[:1]]
        x_old, x = x, step_to(x, _midway(history, sigma_next), sigma, sigma_next)
        yield Step(i, float(sigma_next), x, denoised)


def _corrected(history: History, sigma_next: Tensor, denoised_next: Tensor) -> Tensor:
    """Denoised over the last step, now that it is known at its end, sigma_next (UniPC, eq. 3 and 9)."""
    sigma, denoised = history[0]
    if len(history) < 2:
        return (denoised + denoised_next) / 2
    old_sigma, old_denoised = history[1]
    h = (sigma / sigma_next).log()
    r = (sigma / old_sigma).log() / h
    phi = torch.expm1(-h)
    b1 = (-phi / h - 1) / phi
    b2 = 2 * ((phi / h + 1) / h - 1 / 2) / phi
    rho = (b1 - b2) / (1 - r)
    return denoised + rho / r * (old_denoised - denoised) + (b1 - rho) * (denoised_next - denoised)


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """A sampler, and how the reference runs it."""

    run: Sampler
    schedule: str  # its usual spacing
    final: Final  # how its levels end; see `sampling_sigmas`
    whole_t: bool  # rounds the network's time steps, and starts from unit noise in variance-preserving units
    options: tuple[str, ...] = ()  # the keyword arguments of `run`: eta, prediction, rates

    def init_noise_sigma(self, schedule: str, sigma: float) -> float:
        """The standard deviation of the noise that a run starts from at its first level, as in diffusers."""
        return math.hypot(sigma, 1) if self.whole_t or schedule == "leading" else sigma


SAMPLERS: dict[str, SamplerSpec] = {
    #                            run              schedule    final      whole_t  options
    "ddpm":            SamplerSpec(ddpm,            "leading",  "zero",    True,  ("eta",)),
    "ddim":            SamplerSpec(ddim,            "leading",  "lowest",  True,  ("eta",)),
    "pndm":            SamplerSpec(pndm,            "leading",  "lowest",  True,  ("prediction",)),
    "lms":             SamplerSpec(lms,             "linspace", "zero",    False),
    "euler":           SamplerSpec(euler,           "linspace", "zero",    False),
    "euler_ancestral": SamplerSpec(euler_ancestral, "linspace", "zero",    False, ("eta",)),
    "heun":            SamplerSpec(heun,            "linspace", "zero",    False),
    "dpmpp_2m":        SamplerSpec(dpmpp_2m,        "karras",   "replace", True),
    "dpmpp_2m_sde":    SamplerSpec(dpmpp_2m_sde,    "karras",   "replace", True,  ("eta",)),
    "dpmpp_sde":       SamplerSpec(dpmpp_sde,       "karras",   "zero",    False, ("eta",)),
    "unipc":           SamplerSpec(unipc,           "linspace", "replace", True),
    "sgd":             SamplerSpec(sgd,             "linspace", "zero",    False, ("eta", "rates")),
    "momentum":        SamplerSpec(momentum,        "linspace", "zero",    False, ("eta", "rates")),
    "nesterov":        SamplerSpec(nesterov,        "linspace", "zero",    False, ("eta", "rates")),
    "adam":            SamplerSpec(adam,            "linspace", "zero",    False, ("eta", "rates")),
}  # fmt: skip
