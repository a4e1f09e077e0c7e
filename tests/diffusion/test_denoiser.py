"""A prediction is four scalings: what a perfect network would say, put back, is the picture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gradina.diffusion.denoiser import Denoiser, noised, snr, with_channels
from gradina.diffusion.prediction import PREDICTIONS, prediction_named
from gradina.diffusion.schedule import sd_schedule
from gradina.errors import WeightsError

SCHEDULE = sd_schedule()
SIGMAS = SCHEDULE.sigmas[[0, 300, 999]]


def picture_and_noise() -> tuple[Tensor, Tensor]:
    return torch.randn((2, 3, 4, 5, 5), generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_a_network_that_outputs_its_target_denoises_perfectly(name: str) -> None:
    z, n = picture_and_noise()
    for sigma in (SIGMAS, *SIGMAS):
        target = PREDICTIONS[name].target(z, n, sigma)
        denoiser = Denoiser(lambda x, t, cond, said=target: said, SCHEDULE, PREDICTIONS[name])
        x = denoiser.noised(z, n, sigma)
        assert torch.equal(denoiser.target(z, n, sigma), target)
        torch.testing.assert_close(denoiser(x, sigma, None), z, rtol=0, atol=2e-5)
        torch.testing.assert_close(PREDICTIONS[name].output(x, sigma, z), target, rtol=0, atol=2e-4)


def test_targets_equal_those_of_the_papers() -> None:
    z, n = picture_and_noise()
    alpha = SCHEDULE.alphas_bar[700].sqrt()
    sigma = SCHEDULE.sigmas[700]
    assert torch.equal(PREDICTIONS["eps"].target(z, n, sigma), n)
    assert torch.equal(PREDICTIONS["x0"].target(z, n, sigma), z)
    velocity = alpha * n - (1 - alpha**2).sqrt() * z
    torch.testing.assert_close(PREDICTIONS["v"].target(z, n, sigma), velocity, rtol=1e-5, atol=1e-6)


def test_targets_have_their_limits() -> None:
    """At sigma 0 the picture is all there, at infinity the noise is."""
    z, n = picture_and_noise()
    limits = {"eps": (n, n), "v": (n, -z), "x0": (z, z)}
    for name, ends in limits.items():
        for sigma, limit in zip((0.0, math.inf), ends, strict=True):
            assert torch.equal(PREDICTIONS[name].target(z, n, torch.tensor(sigma)), limit), (name, sigma)


@pytest.mark.parametrize("whole_t", [False, True])
def test_the_network_is_given_unit_variance_and_its_own_time_steps(whole_t: bool) -> None:
    seen: list[Any] = []

    def network(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append((x, t, cond))
        return x

    denoiser = Denoiser(network, SCHEDULE, PREDICTIONS["eps"], whole_t)
    x, cond = torch.ones(3, 4, 5, 5), object()
    denoiser(x, SIGMAS, cond)
    denoiser(x.half(), SCHEDULE.sigma_of(torch.tensor(500.25)), cond)
    (first, t, given), (second, t_between, _) = seen
    assert given is cond
    assert t.dtype == torch.float32
    assert t.tolist() == [0, 300, 999]
    torch.testing.assert_close(first[:, 0, 0, 0], (1 / (1 + SIGMAS**2).sqrt()).float())
    assert t_between.tolist() == pytest.approx([500.0 if whole_t else 500.25] * 3, abs=1e-3)
    assert second.dtype == torch.float16


def test_sigma_is_a_scalar_or_one_value_per_example() -> None:
    z, n = picture_and_noise()
    each = noised(z, n, SIGMAS)
    assert torch.equal(each, torch.cat([noised(z[i : i + 1], n[i : i + 1], SIGMAS[i]) for i in range(3)]))
    torch.testing.assert_close(
        snr(SIGMAS), SCHEDULE.alphas_bar[[0, 300, 999]] / (1 - SCHEDULE.alphas_bar[[0, 300, 999]])
    )


def test_extra_channels_are_repeated_for_a_guided_batch() -> None:
    extra = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 5, 3, 3)
    network = with_channels(lambda x, t, cond: x, extra)
    given = network(torch.zeros(4, 4, 3, 3), torch.zeros(4), None)
    assert given.shape == (4, 9, 3, 3)
    assert given[:, 4, 0, 0].tolist() == [0, 1, 0, 1]


def test_predictions_by_name() -> None:
    for prediction in PREDICTIONS.values():
        assert prediction_named(prediction.name) is prediction_named(prediction.diffusers) is prediction
    with pytest.raises(WeightsError, match=r"choices: eps \(epsilon\), v \(v_prediction\), x0 \(sample\)"):
        prediction_named("score")
