"""Losses in closed form, and the loop on problems whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.diffusion.denoiser import Denoiser
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import sd_schedule
from gradina.errors import RecipeError
from gradina.models.clip import CLIP, TextConfig
from gradina.models.clip_vision import VisionConfig
from gradina.models.vae import AutoencoderKL, Gaussian, VAEConfig
from gradina.training.loop import Settings, State, train
from gradina.training.losses import autoencoding, contrastive, denoising, min_snr, naming


def key(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_divergence_of_gaussians_is_that_of_torch() -> None:
    mean, logvar = torch.randn(3, 4, 2, 2, generator=key()), torch.randn(3, 4, 2, 2, generator=key(1))
    ours = Gaussian(mean, logvar).kl()
    p, q = torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0, 1)
    assert torch.allclose(ours, torch.distributions.kl_divergence(p, q).sum((1, 2, 3)), atol=1e-4)


def test_autoencoding_is_error_plus_divergence() -> None:
    vae = AutoencoderKL(VAEConfig(widths=(4, 4), blocks=1, groups=2, scale=0.3))
    pixels, noise = torch.rand(2, 3, 8, 8, generator=key()), torch.randn(2, 4, 4, 4, generator=key(1))
    gaussian = vae.posterior(pixels)
    error = vae.decoder(vae.post_quant(gaussian.sample(noise))) - pixels
    expected = error.abs().mean((1, 2, 3)) + (error**2).mean((1, 2, 3)) + 0.1 * gaussian.kl()
    assert torch.allclose(autoencoding(vae, pixels, noise, 0.1), expected, atol=1e-5)


def test_smaller_latents_have_to_give_the_smaller_picture() -> None:
    vae = AutoencoderKL(VAEConfig(widths=(4, 4), blocks=1, groups=2, scale=0.3))
    pixels, noise = torch.rand(2, 3, 12, 12, generator=key()), torch.zeros(2, 4, 6, 6)
    with torch.no_grad():
        gaussian = vae.posterior(pixels)
        halves = [F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True) for x in (gaussian.mean, pixels)]
        error = vae.decode(halves[0] * 0.3) - halves[1]
        expected = (error.abs() + error**2).mean((1, 2, 3)) + 0.1 * gaussian.kl()
        torch.testing.assert_close(autoencoding(vae, pixels, noise, 0.1, side=3), expected)


def test_contrastive_loss_without_any_knowledge_is_log_n() -> None:
    n = 5
    loss = contrastive(torch.zeros(n, n), torch.eye(n).bool())
    assert torch.allclose(loss, torch.full((n,), math.log(n)))


def test_pictures_of_one_kind_are_no_counter_examples() -> None:
    kinds = torch.tensor([0, 0, 1])
    loss = contrastive(torch.zeros(3, 3), kinds[:, None] == kinds)
    assert torch.allclose(loss, torch.tensor([2.0, 2.0, 3.0]).log())


def test_contrastive_loss_of_distinct_kinds_is_the_cross_entropy_both_ways() -> None:
    logits = torch.randn(4, 4, generator=key())
    loss = contrastive(logits, torch.eye(4).bool())
    expected = -(logits.log_softmax(1).diag() + logits.log_softmax(0).diag()) / 2
    assert torch.allclose(loss, expected, atol=1e-6)


def test_naming_is_the_cross_entropy_over_all_names_of_those_that_have_one() -> None:
    logits = torch.randn(3, 7, generator=key())
    expected = -logits.log_softmax(1)[[0, 2], [4, 6]]
    assert torch.allclose(naming(logits, torch.tensor([4, -1, 6])), torch.tensor([expected[0], 0.0, expected[1]]))


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_a_perfect_network_has_no_loss(name: str) -> None:
    z, n = torch.randn(3, 4, 2, 2, generator=key()), torch.randn(3, 4, 2, 2, generator=key(1))
    schedule = sd_schedule()
    sigma = schedule.sigmas[[10, 400, 900]]
    alpha = (1 / (1 + sigma**2).sqrt()).float().view(-1, 1, 1, 1)
    beta = sigma.float().view(-1, 1, 1, 1) * alpha
    said = {"eps": n, "v": alpha * n - beta * z, "x0": z}[name]
    denoiser = Denoiser(lambda x, t, cond: said, schedule, PREDICTIONS[name])
    assert denoising(denoiser, z, n, sigma, torch.empty(0)).max() < 1e-9


def test_the_network_is_asked_at_the_time_steps_of_its_noise_levels() -> None:
    asked = []
    schedule = sd_schedule()

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        asked.append((x, t))
        return x

    z, n = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    denoising(Denoiser(network, schedule, PREDICTIONS["eps"]), z, n, schedule.sigmas[[0, 999]], torch.empty(0))
    assert asked[0][1].tolist() == [0, 999]
    assert torch.allclose(asked[0][0].flatten(), schedule.alphas_bar[[0, 999]].sqrt().float())


def test_min_snr_has_its_limits() -> None:
    """Hang et al., section 3.4: min(snr, 5) over snr, over snr + 1, and alone; also without noise or signal."""
    sigma = torch.tensor([0.0, 0.1, 1.0, 2.0, 4096.0, math.inf], dtype=torch.float64)
    expected = {
        "eps": [0, 5 / 100, 1, 1, 1, 1],
        "v": [0, 5 / 101, 1 / 2, 1 / 5, 1 / (4096**2 + 1), 0],
        "x0": [5, 5, 1, 1 / 4, 1 / 4096**2, 0],
    }
    for name, weights in expected.items():
        assert min_snr(sigma, 5.0, name).tolist() == pytest.approx(weights, rel=1e-12), name


def line(settings: Settings) -> tuple[State, list[float]]:
    """Fits y = 3 x + 1 by the loop."""
    torch.manual_seed(0)
    state = State.begin(nn.Linear(1, 1), settings)

    def loss(network: nn.Module, k: int) -> Tensor:
        x = torch.randn(16, 1, generator=key(k))
        return ((network(x) - (3 * x + 1)) ** 2).flatten()

    return state, [step.loss for step in train(state, loss, settings)]


def test_the_loop_solves_a_line() -> None:
    state, losses = line(Settings(steps=400, batch=16, lr=0.05, warmup=5, weight_decay=0.0))
    assert losses[-1] < 1e-4 < losses[0]
    assert torch.allclose(state.network.weight, torch.tensor([[3.0]]), atol=0.02)  # type: ignore[arg-type]
    assert torch.allclose(state.ema.bias, torch.tensor([1.0]), atol=0.05)  # type: ignore[arg-type]


def test_accumulated_batches_are_one_large_batch() -> None:
    def loss_of(size: int) -> object:
        def loss(network: nn.Module, k: int) -> Tensor:
            x = torch.arange(k * size, (k + 1) * size).float()[:, None] / 100
            return ((network(x) - x) ** 2).flatten()

        return loss

    results = []
    for accumulate, size in ((1, 12), (4, 3)):
        torch.manual_seed(0)
        settings = Settings(steps=5, batch=size, lr=0.01, accumulate=accumulate, clip=1e9)
        state = State.begin(nn.Linear(1, 1), settings)
        list(train(state, loss_of(size), settings))  # type: ignore[arg-type]
        results.append(state.network.weight.detach().clone())
    assert torch.allclose(*results, atol=1e-6)


def test_learning_rate_warms_up_stays_and_falls() -> None:
    settings = Settings(steps=100, batch=1, lr=1.0, warmup=10, decay=0.5)
    rates = [settings.lr_at(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.98)))
    assert [Settings(steps=9, batch=1, lr=1.0, warmup=0, decay=0).lr_at(i) for i in (0, 8)] == [1.0, 1.0]


def test_a_loss_that_is_no_number_stops_and_spares_the_weights() -> None:
    torch.manual_seed(0)
    settings = Settings(steps=10, batch=1, lr=0.1, warmup=0)
    state = State.begin(nn.Linear(1, 1), settings)

    def loss(network: nn.Module, k: int) -> Tensor:
        return (network(torch.ones(1, 1)) * (float("nan") if k == 3 else 1)).flatten()

    with pytest.raises(RecipeError, match=r"the loss is nan at step 4; try a lower lr than 0\.1"):
        list(train(state, loss, settings))
    assert state.step == 3
    assert all(torch.isfinite(p).all() for p in state.network.parameters())


def test_a_gradient_that_is_no_number_stops_and_spares_the_weights() -> None:
    torch.manual_seed(0)
    settings = Settings(steps=10, batch=1, lr=0.1, warmup=0)
    state = State.begin(nn.Linear(1, 1), settings)

    def loss(network: nn.Module, k: int) -> Tensor:
        return torch.sqrt((network(torch.ones(1, 1)) * (k != 1)).abs()).flatten()

    with pytest.raises(RecipeError, match="the gradient is nan at step 2"):
        list(train(state, loss, settings))
    assert all(torch.isfinite(p).all() for p in state.network.parameters())


def test_clip_tells_apart_what_it_has_learnt() -> None:
    torch.manual_seed(0)
    text = TextConfig(vocabulary=8, length=4, width=16, inner=32, layers=1, heads=2, projection=8, eos=7)
    vision = VisionConfig(size=8, patch=4, width=16, inner=32, layers=1, heads=2, projection=8)
    clip = CLIP(text, vision)
    ids = torch.tensor([[6, i, 7, 7] for i in range(4)])
    pixels = torch.randn(4, 3, 8, 8, generator=key())
    settings = Settings(steps=60, batch=4, lr=5e-3, warmup=1)
    state = State.begin(clip, settings)
    list(train(state, lambda net, k: contrastive(net(ids, pixels), torch.eye(4).bool()), settings))
    assert (clip(ids, pixels).argmax(1) == torch.arange(4)).all()
