"""The solvers: walks from noise to a picture, by denoising at falling noise levels; and the table SAMPLERS.

One step, `step_to`, serves most methods: they differ in the guess that they walk towards, and in how much fresh noise
they take.
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
from gradina.diffusion.step import Sampler, Step, fresh, step_to

Past = list[tuple[Tensor, Tensor]]  # (sigma, denoised) of this step and of the ones before it, newest first


def _extrapolated(past: Past, to: Tensor) -> Tensor:
    """The guess half-way to `to`, on a line in log sigma through the last two (DPM-Solver++, algorithm 2)."""
    if len(past) < 2 or to == 0:
        return past[0][1]
    (sigma, guess), (before, last) = past
    r = (before / sigma).log() / (sigma / to).log()
    return guess + (guess - last) / (2 * r)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2206.00364, algorithm 1 without its second half: Euler's method."""
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        x = step_to(x, denoised, sigma, to)
        yield Step(i, float(to), x, denoised)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """Song et al. 2010.02502, DDIM, eq. 12: in these coordinates it is Euler's method; eta puts noise back (eq. 16)."""
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        up = fresh(sigma, to, eta)
        x = step_to(x, denoised, sigma, to, up)
        if up > 0:
            x = x + up * noise()
        yield Step(i, float(to), x, denoised)


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """Ho et al. 2006.11239, algorithm 2, with the smaller variance: in these coordinates it is DDIM at eta 1."""
    return ddim(denoise, x, sigmas, noise, eta)


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion `sample_euler_ancestral`: Euler's method to a lower level, and fresh noise: DDIM at eta 1."""
    return ddim(denoise, x, sigmas, noise, eta)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2206.00364, algorithm 1: Heun's method; the slope at both ends of a step, two guesses each."""
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        if to > 0:
            probe = x + (to - sigma) * slope
            slope = (slope + (probe - denoise(probe, to)) / to) / 2
        x = x + (to - sigma) * slope
        yield Step(i, float(to), x, denoised)


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 4) -> Iterator[Step]:
    """k-diffusion `sample_lms`: linear multistep (Adams-Bashforth) over uneven noise levels, up to order 4."""
    levels, slopes = sigmas.tolist(), list[Tensor]()
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]
        weights = _adams_weights(levels[i - len(slopes) + 1 : i + 1][::-1], levels[i + 1])
        x = x + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        yield Step(i, float(to), x, denoised)


def _adams_weights(knots: list[float], to: float) -> list[float]:
    """The integrals from knots[0] to `to` of the Lagrange polynomials over up to 4 knots (Gauss-Legendre, exact)."""
    middle, half = (knots[0] + to) / 2, (to - knots[0]) / 2
    places = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    others = [[k for k in knots if k != knot] for knot in knots]
    return [
        half * sum(math.prod((p - k) / (knot - k) for k in rest) for p in places)
        for knot, rest in zip(knots, others, strict=True)
    ]


ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, prediction: Prediction = PREDICTIONS["eps"]
) -> Iterator[Step]:
    """Liu et al. 2202.09778, PNDM, with the linear multistep of eq. 12 throughout (PLMS): SD's first sampler.

    It averages what the network said, so it asks which prediction that is; its first step takes two guesses. To average
    v is what diffusers does; the paper averages the noise. It loses an order of convergence: in 20 steps the error is
    six times that of averaged noise, on a mixture of Gaussians.
    """
    outputs = list[Tensor]()
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        outputs = [prediction.output(x, sigma, denoised), *outputs[:3]]
        output = sum((w * o for w, o in zip(ADAMS[len(outputs) - 1], outputs, strict=True)), torch.zeros_like(x))
        if i == 0 and len(sigmas) > 2:
            probe = step_to(x, denoised, sigma, to)
            output = (output + prediction.output(probe, to, denoise(probe, to))) / 2
        x = step_to(x, prediction.denoised(x, sigma, output), sigma, to)
        yield Step(i, float(to), x, denoised)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Lu et al. 2211.01095, DPM-Solver++(2M), algorithm 2: towards the guess half-way, from the last two."""
    past: Past = []
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        past = [(sigma, denoised), *past[:1]]
        x = step_to(x, _extrapolated(past, to), sigma, to)
        yield Step(i, float(to), x, denoised)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """Lu et al. 2211.01095, SDE-DPM-Solver++(2M), eq. 19: DPM-Solver++(2M) with fresh noise in each step."""
    past: Past = []
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        past = [(sigma, denoised), *past[:1]]
        up = fresh(sigma, to, eta)
        x = step_to(x, _extrapolated(past, to), sigma, to, up)
        if up > 0:
            x = x + up * noise()
        yield Step(i, float(to), x, denoised)


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion `sample_dpmpp_sde`, SDE-DPM-Solver++(2S), r = 1/2: two guesses a step, noise of one Brownian path."""
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        guess = denoised = denoise(x, sigma)
        if to > 0:
            middle = (sigma * to).sqrt()
            up = fresh(sigma, middle, eta)
            probe = step_to(x, denoised, sigma, middle, up)
            guess = denoise(probe + up * noise.brownian(sigma, middle) if up > 0 else probe, middle)
        up = fresh(sigma, to, eta)
        x = step_to(x, guess, sigma, to, up)
        if up > 0:
            x = x + up * noise.brownian(sigma, to)
        yield Step(i, float(to), x, denoised)


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Zhao et al. 2302.04867, UniPC of order 2 with B2(h): each guess first corrects the step that led to it."""
    past: Past = []
    start = x
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if past:
            x = step_to(start, _corrected(past, sigma, denoised), past[0][0], sigma)
        past = [(sigma, denoised), *past[:1]]
        start, x = x, step_to(x, _extrapolated(past, to), sigma, to)
        yield Step(i, float(to), x, denoised)


def _corrected(past: Past, to: Tensor, arrived: Tensor) -> Tensor:
    """The guess over the last step, now that the guess at its end, `to`, is known (UniPC, eq. 3 and 9)."""
    sigma, guess = past[0]
    if len(past) < 2:
        return (guess + arrived) / 2
    before, last = past[1]
    h = (sigma / to).log()
    r = (sigma / before).log() / h
    phi = torch.expm1(-h)
    b1 = (-phi / h - 1) / phi
    b2 = 2 * ((phi / h + 1) / h - 1 / 2) / phi
    rho = (b1 - b2) / (1 - r)
    return guess + rho / r * (last - guess) + (b1 - rho) * (arrived - guess)


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """A sampler, and how the reference runs it."""

    run: Sampler
    schedule: str  # its usual spacing
    final: Final  # how its levels end; see `sampling_sigmas`
    whole_t: bool  # asks the network at whole time steps only, and starts from unit noise in variance-preserving units
    options: tuple[str, ...] = ()  # what `run` takes by name: eta, prediction, rates

    def start(self, schedule: str, sigma: float) -> float:
        """What the unit noise of a picture from nothing is multiplied with at the first level, as in diffusers."""
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
