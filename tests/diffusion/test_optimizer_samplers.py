"""The optimizers among the samplers: the ones of torch with the same gradients, and solvers where they have to be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradina.diffusion.noise import Noise
from gradina.diffusion.optimizer_samplers import RATES
from gradina.diffusion.samplers import SAMPLERS
from gradina.request import RATES_NAMES

SHAPE = (1, 4, 4)
MU, S = 0.5, 0.8


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """The mean of x0 given x = x0 + sigma * n, for numbers spread by different amounts."""
    s = S * torch.linspace(0.3, 1, 16, dtype=x.dtype).view(SHAPE)
    return (s**2 * x + sigma**2 * MU) / (s**2 + sigma**2)


def levels(steps: int) -> Tensor:
    rising = torch.linspace(0.1 ** (1 / 7), 10 ** (1 / 7), steps, dtype=torch.float64) ** 7
    return torch.cat([rising.flip(0), torch.zeros(1, dtype=torch.float64)])


def run(name: str, sigmas: Tensor, **options: Any) -> list[Tensor]:
    noise = Noise([7], SHAPE)
    return [step.x for step in SAMPLERS[name].run(denoise, sigmas[0] * noise().double(), sigmas, noise, **options)]


def by_torch(make: Callable[[list[Tensor]], torch.optim.Optimizer], sigmas: Tensor, lrs: list[float]) -> list[Tensor]:
    """The same walk by an optimizer of torch, but for its last step."""
    x = (sigmas[0] * Noise([7], SHAPE)().double()).requires_grad_()
    optimizer, seen = make([x]), []
    for sigma, lr in zip(sigmas[:-2], lrs, strict=False):
        x.grad = ((x - denoise(x, sigma)) / sigma).detach()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        seen.append(x.detach().clone())
    return seen


def test_sgd_with_rates_of_levels_equals_euler() -> None:
    for ours, theirs in zip(run("sgd", levels(12)), run("euler", levels(12)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for name in ("momentum", "nesterov"):
        torch.testing.assert_close(run(name, levels(12), mu=0.0), run("sgd", levels(12)))


def test_sgd_with_eta_equals_ddim() -> None:
    for eta in (0.5, 1.0):
        torch.testing.assert_close(run("sgd", levels(12), eta=eta), run("ddim", levels(12), eta=eta))


@pytest.mark.parametrize("rates", RATES_NAMES)
def test_updates_equal_those_of_torch_optim(rates: str) -> None:
    sigmas, mu = levels(15), 0.7
    law = RATES[rates](sigmas)
    law = (law * sigmas[0] / law.sum()).tolist()
    shares = [sum(mu**k for k in range(i + 1)) for i in range(len(law) + 1)]
    lrs = [rate / share for rate, share in zip(law, shares, strict=False)]
    theirs = by_torch(lambda x: torch.optim.SGD(x, momentum=mu), sigmas, lrs)
    torch.testing.assert_close(run("momentum", sigmas, rates=rates, mu=mu)[:-1], theirs)
    lrs = [rate / share for rate, share in zip(law, shares[1:], strict=True)]
    theirs = by_torch(lambda x: torch.optim.SGD(x, momentum=mu, nesterov=True), sigmas, lrs)
    torch.testing.assert_close(run("nesterov", sigmas, rates=rates, mu=mu)[:-1], theirs)
    theirs = by_torch(lambda x: torch.optim.Adam(x, betas=(0.6, 0.9)), sigmas, law)
    torch.testing.assert_close(run("adam", sigmas, rates=rates, betas=(0.6, 0.9))[:-1], theirs)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_optimizers_converge_with_order_one(name: str) -> None:
    def error(steps: int) -> float:
        sigmas = levels(steps)[:-1]  # ends above 0
        s = S * torch.linspace(0.3, 1, 16, dtype=torch.float64).view(SHAPE)
        start = sigmas[0] * Noise([7], SHAPE)().double()
        exact = MU + (start - MU) * ((s**2 + sigmas[-1] ** 2) / (s**2 + sigmas[0] ** 2)).sqrt()
        return float((run(name, sigmas)[-1] - exact).abs().max())

    errors = [error(steps) for steps in (80, 160, 320)]
    for before, after in itertools.pairwise(errors):
        assert 1.8 < before / after < 2.2, errors


def test_the_last_step_is_to_denoised() -> None:
    for name, rates in itertools.product(("sgd", "momentum", "nesterov", "adam"), RATES_NAMES):
        sigmas = levels(6)
        *_, last = SAMPLERS[name].run(denoise, torch.ones(1, *SHAPE).double(), sigmas, None, rates=rates)
        assert torch.equal(last.x, last.denoised)
        assert last.sigma == 0


def test_rates_of_all_laws_sum_to_the_descent() -> None:
    assert tuple(RATES) == RATES_NAMES
    for law in RATES.values():
        rates = law(levels(9))
        assert rates.shape == (9,)
        assert (rates > 0).all()
    torch.testing.assert_close(RATES["levels"](levels(9)).cumsum(0), levels(9)[0] - levels(9)[1:])


@pytest.mark.parametrize("rates", RATES_NAMES)
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam"])
def test_with_zero_terminal_snr_euler_takes_the_first_steps(name: str, rates: str) -> None:
    """From 4096 Euler's method walks to a usual level, and the optimizer goes on as if it began there."""
    for high in ([4096.0, 40.0], [4096.0, 3000.0, 900.0, 100.0], [4096.0]):
        sigmas = torch.cat([torch.tensor(high, dtype=torch.float64), levels(12)])
        steps = run(name, sigmas, rates=rates)
        before = len(high)
        torch.testing.assert_close(steps[:before], run("euler", sigmas)[:before], rtol=1e-9, atol=1e-9)
        start = steps[before - 1]
        alone = [s.x for s in SAMPLERS[name].run(denoise, start, sigmas[before:], Noise([7], SHAPE), rates=rates)]
        torch.testing.assert_close(steps[before:], alone)
        assert steps[-1].abs().max() < 5


def test_without_zero_terminal_snr_every_step_is_optimized() -> None:
    sigmas = torch.cat([torch.tensor([900.0, 40.0], dtype=torch.float64), levels(12)])
    assert not torch.allclose(run("adam", sigmas)[0], run("euler", sigmas)[0])
