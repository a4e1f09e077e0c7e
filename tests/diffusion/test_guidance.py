"""Guidance: what is computed, what comes out, and that it is what diffusers makes of the same network."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.guidance import cfg, masked
from gradina.diffusion.noise import Noise
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.samplers import SAMPLERS
from gradina.diffusion.schedule import sampling_sigmas, sd_schedule
from gradina.request import SAMPLER_NAMES

SCHEDULE = sd_schedule()
SHAPE = (4, 8, 8)


class Counted:
    """A network that notes how many pictures it is given at once."""

    def __init__(self, network: Any) -> None:
        self.network, self.batches = network, list[int]()

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.batches.append(len(x))
        return self.network(x, t, cond)


def conditions(b: int) -> tuple[Cond, Cond]:
    """cond and uncond with states (b, 4, 1, 1), which the stand-in network adds to its output."""
    cond, uncond = torch.randn((2, b, 4, 1, 1), generator=torch.Generator().manual_seed(1)).unbind()
    return Cond(cond), Cond(uncond)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("each", [False, True])
def test_guidance_equals_diffusers(each: bool, rescale: float, prediction: str, network: Any) -> None:
    kind, (cond, uncond) = PREDICTIONS[prediction], conditions(3)
    denoiser, x = Denoiser(network, SCHEDULE, kind), 2 * Noise([1, 2, 3], SHAPE)()
    for sigma in SCHEDULE.sigmas[[50, 500, 950]]:
        level = sigma.repeat(3) if each else sigma
        c_x, t = denoiser.inputs(x, sigma)
        said, without = network(c_x, t, cond), network(c_x, t, uncond)
        guided = without + 7.5 * (said - without)
        guided = rescale_noise_cfg(guided, said, rescale) if rescale else guided
        expected = kind.denoised(x, sigma, guided)
        got = cfg(denoiser, cond, uncond, 7.5, rescale)(x, level)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(sigma))


def test_constant_outputs_are_not_rescaled() -> None:
    """Where cond and uncond are the same everywhere, the standard deviation of what is guided is 0."""
    cond, uncond = Cond(torch.full((1, 1), 2.0)), Cond(torch.full((1, 1), 1.0))
    denoiser = Denoiser(on_states(lambda x, t, c: c[..., None, None].expand(x.shape)), SCHEDULE, PREDICTIONS["x0"])
    got = cfg(denoiser, cond, uncond, 7.5, rescale=0.7)(torch.zeros(1, *SHAPE), torch.tensor(3.0))
    assert torch.equal(got, torch.full((1, *SHAPE), 1 + 7.5))


def test_at_scale_one_the_unconditional_pass_is_not_computed(network: Any) -> None:
    counted, (cond, uncond), x = Counted(network), conditions(2), Noise([1, 2], SHAPE)()
    denoiser = Denoiser(counted, SCHEDULE, PREDICTIONS["eps"])
    alone = cfg(denoiser, cond, uncond, 1.0, rescale=0.7)(x, torch.tensor(3.0))
    assert counted.batches == [2]
    assert torch.equal(alone, denoiser(x, torch.tensor(3.0), cond))
    cfg(denoiser, cond, uncond, 1.5)(x, torch.tensor(3.0))
    assert counted.batches == [2, 2, 4]


def test_outside_the_interval_the_unconditional_pass_is_not_computed(network: Any) -> None:
    counted, (cond, uncond), x = Counted(network), conditions(1), Noise([1], SHAPE)()
    denoiser = Denoiser(counted, SCHEDULE, PREDICTIONS["v"])
    guided = cfg(denoiser, cond, uncond, 3.0, interval=(0.5, 5.0))
    for sigma in (9.0, 5.0, 1.0, 0.5, 0.3):
        guided(x, torch.tensor(sigma))
    assert counted.batches == [1, 2, 2, 2, 1]


def test_every_field_of_a_condition_is_guided(network: Any) -> None:
    (cond, uncond), zeros = conditions(1), torch.zeros(1, 4, 1, 1)
    plain = cfg(Denoiser(network, SCHEDULE, PREDICTIONS["eps"]), cond, uncond, 2.0)
    x = Noise([1], SHAPE)()
    for field in ("pooled", "extra"):
        reads = partial(lambda field, x, t, c: network(x, t, Cond(getattr(c, field))), field)
        denoiser = Denoiser(reads, SCHEDULE, PREDICTIONS["eps"])
        guided = cfg(denoiser, *(Cond(zeros, **{field: c.states}) for c in (cond, uncond)), 2.0)
        assert torch.equal(guided(x, torch.tensor(1.0)), plain(x, torch.tensor(1.0)))


def half() -> tuple[Tensor, Tensor, Tensor]:
    """A known picture, a mask that is 1 on the left half, and unit noise."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    known, n = torch.randn((2, 1, *SHAPE), generator=torch.Generator().manual_seed(2)).unbind()
    return known, mask, n


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_keeps_what_is_outside_the_mask(name: str, network: Any) -> None:
    (known, mask, n), row = half(), SAMPLERS[name]
    denoiser = Denoiser(network, SCHEDULE, PREDICTIONS["eps"], row.whole_t)
    inpaint = masked(lambda x, sigma: denoiser(x, sigma, None), known, mask, n)
    sigmas = sampling_sigmas(SCHEDULE, row.schedule, 10, "zero", row.whole_t)
    *_, last = row.run(inpaint, n * sigmas[0], sigmas, Noise([3], SHAPE))
    outside = (mask == 0).expand_as(known)
    torch.testing.assert_close(last.x[outside], known[outside], rtol=0, atol=1e-5)
    torch.testing.assert_close(last.denoised[outside], known[outside], rtol=0, atol=0)
    assert (last.x - known)[~outside].abs().mean() > 0.1


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "lms"])
def test_inside_the_mask_equals_mixing_after_each_step(name: str, network: Any) -> None:
    """diffusers' way: after each step the outside of the latents is replaced by the known picture with its noise."""
    known, mask, n = half()
    denoiser = Denoiser(network, SCHEDULE, PREDICTIONS["eps"])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, None)

    sigmas = sampling_sigmas(SCHEDULE, "linspace", 12)
    ours = list(SAMPLERS[name].run(masked(denoise, known, mask, n), known + sigmas[0] * n, sigmas, Noise([3], SHAPE)))

    def mixing(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(mask * x + (1 - mask) * (known + sigma * n), sigma)

    theirs = list(SAMPLERS[name].run(mixing, known + sigmas[0] * n, sigmas, Noise([3], SHAPE)))
    inside = mask.bool().expand_as(known)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.x[inside], b.x[inside], rtol=1e-5, atol=1e-5)


def test_a_soft_mask_blends() -> None:
    known, _, n = half()
    inpaint = masked(lambda x, sigma: torch.zeros_like(x), known, torch.full((1, 1, 8, 8), 0.25), n)
    torch.testing.assert_close(inpaint(known, torch.tensor(1.0)), 0.75 * known)
