"""Samplers on data whose denoiser is known: N(mu, s^2), whose flow from any noise level to any other has a formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gradina.diffusion.noise import Noise
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.samplers import SAMPLERS, _adams_weights
from gradina.diffusion.schedule import sampling_sigmas, sd_schedule
from gradina.request import SAMPLER_NAMES

MU, S = 0.5, 0.8


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """The mean of x0 given x = x0 + sigma * n."""
    return (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2)


def levels(steps: int, high: float = 10.0, low: float = 0.1) -> Tensor:
    """A smooth grid that ends above 0, where every method keeps its order to the last step."""
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), steps + 1, dtype=torch.float64) ** 7


def error(name: str, steps: int, **options: Any) -> float:
    sigmas, start = levels(steps), torch.full((1, 1, 1, 1), 6.0, dtype=torch.float64)
    *_, last = SAMPLERS[name].run(denoise, start, sigmas, None, **options)
    exact = MU + (start - MU) * ((S**2 + sigmas[-1] ** 2) / (S**2 + sigmas[0] ** 2)).sqrt()
    return float((last.x - exact).abs().max())


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("euler", {}, 0.95, 1.05),
        ("ddim", {}, 0.95, 1.05),
        ("ddpm", {"eta": 0.0}, 0.95, 1.05),
        ("euler_ancestral", {"eta": 0.0}, 0.95, 1.05),
        ("heun", {}, 1.95, 2.1),
        ("dpmpp_2m", {}, 1.95, 2.1),
        ("dpmpp_2m_sde", {"eta": 0.0}, 1.95, 2.1),
        ("dpmpp_sde", {"eta": 0.0}, 1.9, 2.1),
        ("unipc", {}, 2.9, 3.1),
        ("lms", {"order": 1}, 0.95, 1.05),
        ("lms", {"order": 2}, 1.9, 2.1),
        ("lms", {}, 2.4, 4.1),  # fourth order between the first steps, which are Euler's and second order in the end
        ("pndm", {}, 1.95, 2.2),
        ("pndm", {"prediction": PREDICTIONS["x0"]}, 1.95, 2.2),
        (
            "pndm",
            {"prediction": PREDICTIONS["v"]},
            0.95,
            1.05,
        ),  # averaging v over time loses an order, as diffusers does
    ],
)
def test_order_of_convergence(name: str, options: dict[str, Any], low: float, high: float) -> None:
    errors = [error(name, steps, **options) for steps in (40, 80, 160)]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(low <= order <= high for order in orders), (errors, orders)


def test_multistep_weights_are_exact_for_cubics() -> None:
    knots, to = [3.0, 4.5, 5.0, 7.0], 1.0
    for power in range(4):
        got = sum(w * k**power for w, k in zip(_adams_weights(knots, to), knots, strict=True))
        assert got == pytest.approx((to ** (power + 1) - knots[0] ** (power + 1)) / (power + 1), rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(SAMPLER_NAMES) - {"adam"}))  # which follows no flow
def test_pictures_have_the_mean_and_the_variance_of_the_data(name: str) -> None:
    model, row, noise = sd_schedule(), SAMPLERS[name], Noise(range(100, 116), (1, 64, 64))
    steps = 40 if name == "dpmpp_sde" else 400  # a Brownian path costs more; DDPM at 400 steps is 1 % short
    sigmas = sampling_sigmas(model, row.schedule, steps, row.final, row.whole_t)
    start = MU + (S**2 + sigmas[0] ** 2).sqrt() * noise()
    *_, last = row.run(denoise, start, sigmas, noise)
    assert float(last.x.mean()) == pytest.approx(MU, abs=4 * S / math.sqrt(last.x.numel()))
    assert float(last.x.std()) == pytest.approx(math.hypot(S, last.sigma), rel=0.02)


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_a_run_is_reproducible_and_independent_of_the_batch(name: str) -> None:
    row, shape = SAMPLERS[name], (1, 4, 4)
    sigmas = levels(8)

    def last(seeds: list[int]) -> Tensor:
        noise = Noise(seeds, shape)
        *_, step = row.run(denoise, noise() * sigmas[0], sigmas, noise)
        return step.x

    together = last([7, 8, 9])
    assert torch.equal(together, last([7, 8, 9]))
    assert torch.equal(together[1:2], last([8]))


def test_eta_adds_noise() -> None:
    for name in ("ddpm", "ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde"):
        assert "eta" in SAMPLERS[name].options
        still, lively = (
            list(SAMPLERS[name].run(denoise, torch.ones(1, 1, 4, 4), levels(8), Noise([1], (1, 4, 4)), eta=eta))
            for eta in (0.0, 1.0)
        )
        assert float(still[-1].x.std()) < 1e-6 < 1e-2 < float(lively[-1].x.std())
