"""Noise levels: the figures of Stable Diffusion, and the levels that diffusers' schedulers stop at."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

from gradina.diffusion.betas import cosine_betas, linear_betas, scaled_linear_betas, zero_terminal_snr
from gradina.diffusion.schedule import (
    SCHEDULES,
    Schedule,
    beta_quantile,
    img2img_sigmas,
    sampling_sigmas,
    sd_schedule,
)
from gradina.errors import RequestError, WeightsError
from gradina.request import SCHEDULE_NAMES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, numpy 2

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def test_the_sigmas_of_stable_diffusion() -> None:
    schedule = sd_schedule()
    assert schedule.sigmas[0].item() == pytest.approx(0.0291672, abs=5e-8)
    assert schedule.sigmas[-1].item() == pytest.approx(14.6146412, abs=5e-8)
    assert schedule.alphas_bar[499].item() == pytest.approx(0.2776697, abs=5e-8)
    assert schedule.alphas_bar[999].item() == pytest.approx(0.0046601, abs=5e-8)
    assert schedule.t_of(sampling_sigmas(schedule, "leading", 50)[:3]).tolist() == [981, 961, 941]


def test_the_sigmas_of_zero_terminal_snr() -> None:
    betas = zero_terminal_snr(scaled_linear_betas())
    alphas_bar = (1 - betas).cumprod(0)
    assert alphas_bar[0].item() == pytest.approx(0.99915, abs=1e-12)
    assert alphas_bar[500].item() == pytest.approx(0.241019, abs=5e-7)
    assert alphas_bar[998].item() == pytest.approx(1.968e-7, abs=5e-11)
    assert alphas_bar[999].item() == 0
    assert Schedule.from_betas(betas).sigmas[-1].item() == pytest.approx(4096, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("scaled_linear", scaled_linear_betas(1000, 0.0001, 0.02)),
        ("linear", linear_betas(1000)),
        ("squaredcos_cap_v2", cosine_betas(1000)),
    ],
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_betas_equal_those_of_diffusers(name: str, betas: torch.Tensor, zero_snr: bool) -> None:
    reference = diffusers.EulerDiscreteScheduler(beta_schedule=name, rescale_betas_zero_snr=zero_snr)
    ours = Schedule.from_betas(zero_terminal_snr(betas) if zero_snr else betas)
    rtol = 2e-3 if zero_snr else 3e-4  # theirs are in single precision: 1 - beta loses digits where beta is small
    torch.testing.assert_close(ours.sigmas.flip(0), reference.sigmas[:-1].double(), rtol=rtol, atol=0)


@pytest.mark.parametrize("betas", [[], [0.1], [0.0, 0.1], [0.1, 1.0, 0.1], [0.1, -0.1], [0.1, math.nan], [0.1, 1.1]])
def test_betas_that_are_no_variances_are_refused(betas: list[float]) -> None:
    with pytest.raises(WeightsError, match="betas: expected a list of at least two, above 0 and below 1"):
        Schedule.from_betas(torch.tensor(betas))


def test_sigma_of_inverts_t_of() -> None:
    for schedule in (sd_schedule(), sd_schedule(rescale_betas_zero_snr=True), sd_schedule(num_train_timesteps=50)):
        t = torch.arange(len(schedule.sigmas))
        assert torch.equal(schedule.t_of(schedule.sigmas), t.double())
        assert torch.equal(schedule.sigma_of(t), schedule.sigmas)
        between = torch.linspace(1, len(t) - 2, 333, dtype=torch.float64)
        assert (schedule.t_of(schedule.sigma_of(between)) - between).abs().max() < 0.1
    assert schedule.t_of(torch.tensor([0.0, 1e9])).tolist() == [0, 49]
    assert schedule.t_of(torch.tensor(1.0)).shape == ()


def test_t_of_equals_diffusers() -> None:
    reference, schedule = diffusers.EulerDiscreteScheduler(**BETAS), sd_schedule()
    sigmas = np.geomspace(0.01, 20, 100)
    theirs = [reference._sigma_to_t(s, schedule.sigmas.log().numpy()) for s in sigmas]
    np.testing.assert_allclose(schedule.t_of(torch.from_numpy(sigmas)), np.array(theirs), atol=1e-9)


@pytest.mark.parametrize("steps", [2, 7, 10, 20, 33, 50])
@pytest.mark.parametrize("name", ["leading", "linspace", "trailing", "karras", "exponential", "beta"])
@pytest.mark.parametrize(
    ("cls", "final", "whole"),
    [
        ("EulerDiscreteScheduler", "zero", False),
        ("DPMSolverMultistepScheduler", "replace", True),
        ("UniPCMultistepScheduler", "replace", True),
    ],
)
def test_sigmas_equal_those_of_diffusers(cls: str, final: Any, whole: bool, name: str, steps: int) -> None:
    spacing = {"timestep_spacing": name}
    if name in ("karras", "exponential", "beta"):
        spacing = {f"use_{name}_sigmas": True, "timestep_spacing": "linspace"}
    reference = getattr(diffusers, cls)(**BETAS, **spacing)
    reference.set_timesteps(steps)
    sigmas = sampling_sigmas(sd_schedule(), name, steps, final, whole)
    torch.testing.assert_close(sigmas, reference.sigmas.double(), rtol=2e-5, atol=0)
    t = sd_schedule().t_of(sigmas[:-1])
    limit = 1.0 if whole and name in ("exponential", "beta") else 0.005  # they cut the fraction off, we round
    assert ((t.round() if whole else t) - reference.timesteps).abs().max() <= limit


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name", ["leading", "trailing"])
def test_ddim_and_pndm_end_at_the_lowest_sigma(name: str, steps: int) -> None:
    reference = diffusers.DDIMScheduler(**BETAS, timestep_spacing=name, set_alpha_to_one=False)
    reference.set_timesteps(steps)
    schedule = sd_schedule()
    sigmas = sampling_sigmas(schedule, name, steps, "lowest", True)
    assert schedule.t_of(sigmas[:-1]).tolist() == reference.timesteps.tolist()
    assert sigmas[-1] == schedule.sigmas[0]
    to_one = Schedule(schedule.sigmas, set_alpha_to_one=True)
    assert sampling_sigmas(to_one, name, steps, "lowest", True)[-1] == 0


def test_align_your_steps() -> None:
    schedule = sd_schedule()
    assert sampling_sigmas(schedule, "ays", 10).tolist() == pytest.approx(
        AysSchedules["StableDiffusionSigmas"], rel=1e-12
    )
    fine = sampling_sigmas(
        schedule, "ays", 20
    )  # every second level is one of the ten, the others their geometric means
    assert fine[:-1:2].tolist() == pytest.approx(AysSchedules["StableDiffusionSigmas"][:-1], rel=1e-12)
    assert fine[1].item() == pytest.approx(math.sqrt(14.615 * 6.475))
    assert fine[19].item() == pytest.approx(math.sqrt(0.152 * 0.029))


def test_sgm_uniform_is_linspace_without_its_last_sigma() -> None:
    schedule = sd_schedule()
    assert schedule.t_of(sampling_sigmas(schedule, "sgm_uniform", 9)[:-1]).tolist() == pytest.approx(
        list(range(999, 0, -111))
    )


@pytest.mark.parametrize("final", ["zero", "replace", "lowest"])
@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_sigmas_fall_to_the_end(name: str, final: Any) -> None:
    assert tuple(SCHEDULES) == SCHEDULE_NAMES
    for schedule in (sd_schedule(), sd_schedule(rescale_betas_zero_snr=True), sd_schedule(num_train_timesteps=100)):
        for steps in (1, 2, 3, 30):
            sigmas = sampling_sigmas(schedule, name, steps, final, True)
            assert sigmas.shape == (steps + 1,)
            assert sigmas.dtype == torch.float64
            assert (sigmas.diff() < 0).all()
            assert sigmas[-1] in (0, schedule.sigmas[0])


@pytest.mark.parametrize("name", [name for name in SCHEDULE_NAMES if name not in ("leading", "ays")])
def test_one_step_starts_at_the_highest_sigma(name: str) -> None:
    """Theirs starts at the lowest one where the levels are spread evenly: the only step would see no noise."""
    assert sampling_sigmas(sd_schedule(), name, 1).tolist() == pytest.approx([sd_schedule().sigmas[-1].item(), 0])


def test_there_can_be_as_many_steps_as_sigmas() -> None:
    schedule = sd_schedule()
    for name in ("leading", "linspace", "trailing"):
        assert torch.equal(sampling_sigmas(schedule, name, 1000)[:-1].flip(0), schedule.sigmas)


@pytest.mark.parametrize(("name", "steps"), [("leading", 0), ("leading", 1001), ("ays ", 10), ("Karras", 10)])
def test_more_steps_than_sigmas_are_refused(name: str, steps: int) -> None:
    with pytest.raises(RequestError, match=r"expected 1 to 1000|choices: leading"):
        sampling_sigmas(sd_schedule(), name, steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 20, 33, 50])
def test_strength_leaves_as_many_steps_as_diffusers(steps: int) -> None:
    sigmas = sampling_sigmas(sd_schedule(), "leading", steps)
    for strength in [i / 100 for i in range(101)]:
        left = img2img_sigmas(sigmas, strength)
        assert torch.equal(left, sigmas[len(sigmas) - len(left) :])
        assert len(left) - 1 == steps_of_the_reference(steps, strength)
        assert len(left) >= 1


def steps_of_the_reference(steps: int, strength: float) -> int:
    """How many Euler steps StableDiffusionImg2ImgPipeline runs."""
    from types import SimpleNamespace

    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    pipeline = SimpleNamespace(scheduler=scheduler)
    get_timesteps = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    timesteps, count = get_timesteps(pipeline, steps, strength, "cpu")
    assert len(timesteps) == count
    return count


def test_heun_cuts_the_same_sigmas() -> None:
    reference, strength = diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="leading"), 0.5
    reference.set_timesteps(20)
    start = 20 - int(20 * strength)
    torch.testing.assert_close(
        img2img_sigmas(sampling_sigmas(sd_schedule(), "leading", 20), strength)[0],
        reference.sigmas[start * 2].double(),
        rtol=1e-5,
        atol=0,
    )


def test_beta_quantile_is_that_of_scipy() -> None:
    p = torch.cat([torch.linspace(0, 1, 201, dtype=torch.float64), torch.tensor([1e-9, 1e-4, 1 - 1e-6]).double()])
    expected = scipy.stats.beta.ppf(p.numpy(), 0.6, 0.6)
    np.testing.assert_allclose(beta_quantile(p), expected, rtol=1e-12, atol=1e-15)
