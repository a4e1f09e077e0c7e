"""What is minimised: each objective is a function that gives one number per example."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, snr
from gradina.models.vae import AutoencoderKL
from gradina.training.pretrain.latent_predictor import Reader


def autoencoding(
    vae: AutoencoderKL, pixels: Tensor, noise: Tensor, kl_weight: float, side: int | None = None
) -> Tensor:  # fmt: skip
    """Absolute and squared error of the reconstruction, plus the divergence of z from a normal: (b,).

    With `side`, the latents are made so small before decoding, which has to give the smaller picture: latents then
    are as smooth as pictures are, and easier to draw. Source: Kingma & Welling 2014, equation 10 (the errors are means
    over numbers, kl_weight weighs the sum); Kouzelis et al., "EQ-VAE" (2502.09509), equation 5.
    """
    posterior = vae.posterior(pixels)
    z = posterior.sample(noise)
    if side is not None:
        z, pixels = resized(z, side), resized(pixels, side * vae.config.factor)
    error = vae.decode(z * vae.config.scale) - pixels
    return (error.abs() + error**2).flatten(1).mean(1) + kl_weight * posterior.kl()


def resized(x: Tensor, side: int) -> Tensor:
    """Maps (b, c, h, w) made (b, c, side, side)."""
    return F.interpolate(x.float(), (side, side), mode="bilinear", antialias=True)


def contrastive(logits: Tensor, true: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch, (b,): each caption has to find its picture and each picture its caption.

    `logits` (b, b) are scaled similarities, (texts, pictures). Where caption i is `true` (b, b) of picture j, too, they
    are no counter-examples to each other. Source: Radford et al. 2021, figure 3.
    """
    own = torch.eye(len(true), dtype=torch.bool, device=true.device)
    logits = logits.masked_fill(true & ~own, float("-inf"))
    target = torch.arange(len(true), device=true.device)
    to_picture = F.cross_entropy(logits, target, reduction="none")
    to_caption = F.cross_entropy(logits.T, target, reduction="none")
    return (to_picture + to_caption) / 2


def naming(logits: Tensor, names: Tensor) -> Tensor:
    """Each picture has to find its name among all that there are, (b,); 0 where it has none (-1).

    `logits` (b, n) are scaled similarities, (pictures, names). Source: Yang et al. 2022, "Unified Contrastive Learning
    in Image-Text-Label Space" (2204.03610), equation 3.
    """
    return F.cross_entropy(logits, names, ignore_index=-1, reduction="none")


def imagining(reader: Reader, ids: Tensor, latents: Tensor) -> Tensor:
    """Squared error of the latents that words let expect: (b,)."""
    return ((reader(ids) - latents) ** 2).flatten(1).mean(1)


def denoising(denoiser: Denoiser, latents: Tensor, noise: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """Squared error of what the network should have said of latents + sigma · noise: (b,).

    Source: Ho et al. 2020, equation 14; for v: Salimans & Ho 2022, appendix D.
    """
    said = denoiser.network(*denoiser.inputs(denoiser.noised(latents, noise, sigma), sigma), cond)
    return ((said - denoiser.target(latents, noise, sigma)) ** 2).flatten(1).mean(1)


def min_snr(sigma: Tensor, gamma: float, prediction: str) -> Tensor:
    """How much the error of each example weighs, (b,), so that no noise level drowns the others.

    min(snr, gamma) over snr for noise, over snr + 1 for velocity, and as it is for the picture itself. Source: Hang et
    al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2303.09556), section 3.4.
    """
    ratio = snr(sigma)
    noise = (gamma / ratio).clamp(max=1)  # min(snr, gamma) / snr: 1 where there is no signal
    return {"eps": noise, "v": noise / (1 + 1 / ratio), "x0": ratio.clamp(max=gamma)}[prediction]
