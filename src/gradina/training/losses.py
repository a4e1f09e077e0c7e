"""Losses: functions that return one value per example, (b,)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, snr
from gradina.diffusion.schedule import Schedule
from gradina.errors import RecipeError
from gradina.models.vae import AutoencoderKL
from gradina.training.settings import NoiseLaw


def autoencoding(
    vae: AutoencoderKL, pixels: Tensor, noise: Tensor, kl_weight: float, side: int | None = None
) -> Tensor:  # fmt: skip
    """L1 and squared error of the reconstruction, plus kl_weight times the KL divergence of z from a normal: (b,).

    With `side`, the latents are resized to that side before decoding, and so are the pictures: this makes latents as
    smooth as pictures, and easier to learn for the U-Net. Source: Kingma & Welling 2014, equation 10 (errors are means
    over pixels, the divergence is a sum); Kouzelis et al., "EQ-VAE" (2502.09509), equation 5.
    """
    posterior = vae.posterior(pixels)
    z = posterior.sample(noise)
    if side is not None:
        z, pixels = resized(z, side), resized(pixels, side * vae.config.factor)
    return pixel_error(vae.decode(z * vae.config.scale) - pixels) + kl_weight * posterior.kl()


def pixel_error(error: Tensor) -> Tensor:
    """The mean of its absolute values and of its squares, (b,)."""
    return (error.abs() + error**2).flatten(1).mean(1)


def reconstruction(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 and squared error of decoded pixels (b, 3, h, w), and L1 of the differences of their neighbours: (b,)."""
    error = decoded - pixels
    edges = sum(error.diff(dim=dim).abs().flatten(1).mean(1) for dim in (2, 3))
    return pixel_error(error) + edges


def resized(x: Tensor, side: int) -> Tensor:
    """Pictures or latents (b, c, h, w) -> (b, c, side, side)."""
    return F.interpolate(x.float(), (side, side), mode="bilinear", antialias=True)


def contrastive(logits: Tensor, true: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch, (b,): each caption is matched with its picture and vice versa.

    `logits` (b, b) are scaled similarities, (texts, pictures). Where caption i is `true` (b, b) of picture j, too, the
    two are no negatives of each other. Source: Radford et al. 2021, figure 3.
    """
    paired = torch.eye(len(true), dtype=torch.bool, device=true.device)
    logits = logits.masked_fill(true & ~paired, float("-inf"))
    target = torch.arange(len(true), device=true.device)
    to_picture = F.cross_entropy(logits, target, reduction="none")
    to_caption = F.cross_entropy(logits.T, target, reduction="none")
    return (to_picture + to_caption) / 2


def name_classification(logits: Tensor, names: Tensor) -> Tensor:
    """Cross-entropy of each picture's name among all names, (b,); 0 where it has none (-1).

    `logits` (b, n) are scaled similarities, (pictures, names). Source: Yang et al. 2022, "Unified Contrastive Learning
    in Image-Text-Label Space" (2204.03610), equation 3.
    """
    return F.cross_entropy(logits, names, ignore_index=-1, reduction="none")


def latent_prediction(predictor: nn.Module, ids: Tensor, latents: Tensor) -> Tensor:
    """Squared error of latents (b, c, h, w) predicted from token ids (b, n) alone: (b,)."""
    return ((predictor(ids) - latents) ** 2).flatten(1).mean(1)


def denoising_loss(denoiser: Denoiser, latents: Tensor, cond: Cond, key: torch.Generator, law: NoiseLaw) -> Tensor:
    """Squared error of the network on `latents` (b, c, h, w) with noise drawn from `key` by the law: (b,).

    The order of the draws is part of what a run's weights depend on: noise, offset, levels.
    """
    noise = torch.randn(latents.shape, generator=key)
    if law.noise_offset:
        noise = noise + law.noise_offset * torch.randn(*latents.shape[:2], 1, 1, generator=key)
    sigma = draw_sigmas(denoiser.schedule, len(latents), key, law)
    error = denoising(denoiser, latents, noise.to(latents.device), sigma, cond)
    return error if law.min_snr is None else error * min_snr(sigma, law.min_snr, denoiser.prediction.name).to(error)


def draw_sigmas(schedule: Schedule, count: int, key: torch.Generator, law: NoiseLaw | None = None) -> Tensor:
    """Sigmas (count,) of timesteps drawn uniformly, within the law's interval, times its shift.

    Source of the shift: Esser et al. (2403.03206), equation 23, in terms of sigma.
    """
    law = law or NoiseLaw()
    levels = noise_levels(schedule, law)
    sigmas = levels[torch.randint(len(levels), (count,), generator=key)]
    return ((law.shift or 1.0) * sigmas).clamp(levels[0], levels[-1])


def noise_levels(schedule: Schedule, law: NoiseLaw) -> Tensor:
    """The schedule's sigmas (n,), rising, that lie in the law's interval. Raises RecipeError where there is none."""
    if law.interval is None:
        return schedule.sigmas
    low, high = law.interval
    levels = schedule.sigmas[(schedule.sigmas >= low) & (schedule.sigmas <= high)]
    if not len(levels):
        ends = "they go from {:.3g} to {:.3g}".format(*schedule.sigmas[[0, -1]].tolist())
        raise RecipeError(f"interval: got {low:g} to {high:g}, which holds no noise level; {ends}")
    return levels


def denoising(denoiser: Denoiser, latents: Tensor, noise: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """Squared error of the network's output at latents + sigma · noise: (b,).

    Source: Ho et al. 2020, equation 14; for v: Salimans & Ho 2022, appendix D.
    """
    output = denoiser.network(*denoiser.inputs(denoiser.noised(latents, noise, sigma), sigma), cond)
    return ((output - denoiser.target(latents, noise, sigma)) ** 2).flatten(1).mean(1)


def min_snr(sigma: Tensor, gamma: float, prediction: str) -> Tensor:
    """The weight of each example's error, (b,), so that no noise level dominates.

    min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v, min(snr, gamma) for x0. Source: Hang et al.,
    "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2303.09556), section 3.4.
    """
    ratio = snr(sigma)
    noise = (gamma / ratio).clamp(max=1)  # min(snr, gamma) / snr: 1 where there is no signal
    return {"eps": noise, "v": noise / (1 + 1 / ratio), "x0": ratio.clamp(max=gamma)}[prediction]
