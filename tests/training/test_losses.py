"""Losses in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import sd_schedule
from gradina.errors import RecipeError
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, Gaussian, VAEConfig
from gradina.training.losses import (
    autoencoding,
    contrastive,
    denoising,
    denoising_loss,
    draw_sigmas,
    min_snr,
    name_classification,
    noise_levels,
)
from gradina.training.settings import NoiseLaw

NOTHING = Cond(torch.empty(0, 0, 0))


def key(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kl_divergence_equals_that_of_torch() -> None:
    mean, logvar = torch.randn(3, 4, 2, 2, generator=key()), torch.randn(3, 4, 2, 2, generator=key(1))
    ours = Gaussian(mean, logvar).kl()
    p, q = torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0, 1)
    assert torch.allclose(ours, torch.distributions.kl_divergence(p, q).sum((1, 2, 3)), atol=1e-4)


def test_autoencoding_is_error_plus_kl_divergence() -> None:
    vae = AutoencoderKL(VAEConfig(widths=(4, 4), blocks=1, groups=2, scale=0.3))
    pixels, noise = torch.rand(2, 3, 8, 8, generator=key()), torch.randn(2, 4, 4, 4, generator=key(1))
    gaussian = vae.posterior(pixels)
    error = vae.decoder(vae.post_quant(gaussian.sample(noise))) - pixels
    expected = error.abs().mean((1, 2, 3)) + (error**2).mean((1, 2, 3)) + 0.1 * gaussian.kl()
    assert torch.allclose(autoencoding(vae, pixels, noise, 0.1), expected, atol=1e-5)


def test_autoencoding_of_resized_latents_compares_with_the_resized_picture() -> None:
    vae = AutoencoderKL(VAEConfig(widths=(4, 4), blocks=1, groups=2, scale=0.3))
    pixels, noise = torch.rand(2, 3, 12, 12, generator=key()), torch.zeros(2, 4, 6, 6)
    with torch.no_grad():
        gaussian = vae.posterior(pixels)
        halves = [F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True) for x in (gaussian.mean, pixels)]
        error = vae.decode(halves[0] * 0.3) - halves[1]
        expected = (error.abs() + error**2).mean((1, 2, 3)) + 0.1 * gaussian.kl()
        torch.testing.assert_close(autoencoding(vae, pixels, noise, 0.1, side=3), expected)


def test_contrastive_loss_of_equal_logits_is_log_n() -> None:
    n = 5
    loss = contrastive(torch.zeros(n, n), torch.eye(n).bool())
    assert torch.allclose(loss, torch.full((n,), math.log(n)))


def test_pictures_of_one_kind_are_no_negatives() -> None:
    kinds = torch.tensor([0, 0, 1])
    loss = contrastive(torch.zeros(3, 3), kinds[:, None] == kinds)
    assert torch.allclose(loss, torch.tensor([2.0, 2.0, 3.0]).log())


def test_contrastive_loss_of_distinct_kinds_is_the_cross_entropy_both_ways() -> None:
    logits = torch.randn(4, 4, generator=key())
    loss = contrastive(logits, torch.eye(4).bool())
    expected = -(logits.log_softmax(1).diag() + logits.log_softmax(0).diag()) / 2
    assert torch.allclose(loss, expected, atol=1e-6)


def test_name_classification_is_the_cross_entropy_where_there_is_a_name() -> None:
    logits = torch.randn(3, 7, generator=key())
    expected = -logits.log_softmax(1)[[0, 2], [4, 6]]
    assert torch.allclose(
        name_classification(logits, torch.tensor([4, -1, 6])), torch.tensor([expected[0], 0.0, expected[1]])
    )


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_a_perfect_network_has_no_loss(name: str) -> None:
    z, n = torch.randn(3, 4, 2, 2, generator=key()), torch.randn(3, 4, 2, 2, generator=key(1))
    schedule = sd_schedule()
    sigma = schedule.sigmas[[10, 400, 900]]
    alpha = (1 / (1 + sigma**2).sqrt()).float().view(-1, 1, 1, 1)
    beta = sigma.float().view(-1, 1, 1, 1) * alpha
    output = {"eps": n, "v": alpha * n - beta * z, "x0": z}[name]
    denoiser = Denoiser(lambda x, t, cond: output, schedule, PREDICTIONS[name])
    assert denoising(denoiser, z, n, sigma, NOTHING).max() < 1e-9


def test_the_network_gets_the_timesteps_of_its_noise_levels() -> None:
    asked = []
    schedule = sd_schedule()

    def network(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        asked.append((x, t))
        return x

    z, n = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    denoising(Denoiser(network, schedule, PREDICTIONS["eps"]), z, n, schedule.sigmas[[0, 999]], NOTHING)
    assert asked[0][1].tolist() == [0, 999]
    assert torch.allclose(asked[0][0].flatten(), schedule.alphas_bar[[0, 999]].sqrt().float())


def test_min_snr_weights_in_the_limits_of_no_noise_and_no_signal() -> None:
    """Hang et al., section 3.4: min(snr, 5) over snr, over snr + 1, and alone; also without noise or signal."""
    sigma = torch.tensor([0.0, 0.1, 1.0, 2.0, 4096.0, math.inf], dtype=torch.float64)
    expected = {
        "eps": [0, 5 / 100, 1, 1, 1, 1],
        "v": [0, 5 / 101, 1 / 2, 1 / 5, 1 / (4096**2 + 1), 0],
        "x0": [5, 5, 1, 1 / 4, 1 / 4096**2, 0],
    }
    for name, weights in expected.items():
        assert min_snr(sigma, 5.0, name).tolist() == pytest.approx(weights, rel=1e-12), name


def unet_and_batch() -> tuple[Denoiser, Tensor, Cond]:
    """A tiny U-Net as a denoiser, latents and text states."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(UNetConfig(widths=(8, 8), attention=(True, False), heads=(2, 2), blocks=1, groups=4, context=16))
    denoiser = Denoiser(on_states(unet), sd_schedule(), PREDICTIONS["v"])
    return denoiser, torch.randn(4, 4, 8, 8, generator=key(1)), Cond(torch.randn(4, 5, 16, generator=key(2)))


def test_denoising_loss_draws_noise_offset_and_levels_in_this_order() -> None:
    """Runs resume bit-identically only while the order stays."""
    denoiser, z, cond = unet_and_batch()
    law, draws = NoiseLaw(shift=2.0, noise_offset=0.3, min_snr=4.0), key(5)
    loss = denoising_loss(denoiser, z, cond, key(5), law)
    noise = torch.randn(z.shape, generator=draws) + 0.3 * torch.randn(4, 4, 1, 1, generator=draws)
    sigmas = denoiser.schedule.sigmas
    sigma = (2.0 * sigmas[torch.randint(1000, (4,), generator=draws)]).clamp(sigmas[0], sigmas[-1])
    expected = denoising(denoiser, z, noise, sigma, cond) * min_snr(sigma, 4.0, "v").float()
    assert torch.equal(loss, expected)


def test_noise_levels_are_drawn_uniformly() -> None:
    schedule = sd_schedule()
    t = schedule.t_of(draw_sigmas(schedule, 20000, key()))
    assert torch.equal(t, t.round())
    assert t.mean().item() == pytest.approx(499.5, abs=4 * 288.7 / math.sqrt(20000))
    assert (t.min(), t.max()) == (0, 999)


def test_shifted_noise_levels_stay_in_the_schedule() -> None:
    schedule = sd_schedule()
    plain, shifted = (draw_sigmas(schedule, 2000, key(), law) for law in (None, NoiseLaw(shift=3.0)))
    assert torch.equal(shifted, (3 * plain).clamp(max=schedule.sigmas[-1]))
    t = schedule.t_of(draw_sigmas(schedule, 2000, key(), NoiseLaw(shift=0.5)))
    assert t.min() == 0
    assert t.max() < 999


def test_an_interval_restricts_the_noise_levels() -> None:
    schedule = sd_schedule()
    levels = noise_levels(schedule, NoiseLaw(interval=(0.5, 2.0)))
    assert torch.equal(levels, schedule.sigmas[(schedule.sigmas >= 0.5) & (schedule.sigmas <= 2.0)])
    assert 0 < len(levels) < 1000
    assert torch.equal(noise_levels(schedule, NoiseLaw()), schedule.sigmas)
    asked: list[Tensor] = []

    def network(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        asked.append(t)
        return x

    denoiser = Denoiser(network, schedule, PREDICTIONS["eps"])
    law = NoiseLaw(interval=(0.5, 2.0), shift=1.5)
    denoising_loss(denoiser, torch.ones(500, 1, 1, 1), NOTHING, key(), law)
    sigma = schedule.sigma_of(asked[0])
    assert sigma.min() >= 0.5
    assert sigma.max() == pytest.approx(levels[-1].item())
    with pytest.raises(RecipeError, match=r"interval: got 20 to 30, which holds no noise level; they go from 0.029"):
        noise_levels(schedule, NoiseLaw(interval=(20.0, 30.0)))


def test_denoising_loss_is_computed_on_the_device_of_the_latents() -> None:
    """On fake CUDA tensors, which do not mix with those of the CPU; the noise is drawn there all the same."""
    law, schedule = NoiseLaw(shift=2.0, noise_offset=0.3, min_snr=4.0), sd_schedule()
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight, z, states = (torch.empty(shape, device="cuda") for shape in ((4, 1, 1), (3, 4, 8, 8), (3, 5, 16)))
        denoiser = Denoiser(
            lambda x, t, cond: weight * x + (t + cond.states.mean((1, 2))).view(-1, 1, 1, 1), schedule, PREDICTIONS["v"]
        )
        loss = denoising_loss(denoiser, z, Cond(states), key(), law)
        assert loss.device.type == "cuda"
        assert loss.shape == (3,)
        with pytest.raises(RuntimeError, match="device"):
            denoising_loss(denoiser, torch.empty(3, 4, 8, 8), Cond(states), key(), law)
