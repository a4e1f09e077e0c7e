"""Guidance takes a denoiser and returns one: classifier-free guidance, inpainting masks. Wrappers nest."""

from __future__ import annotations

import torch
from torch import Tensor

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoise, Denoiser, noised


def cfg(
    denoiser: Denoiser,
    cond: Cond,
    uncond: Cond,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2207.12598, eq. 6): uncond + scale * (cond - uncond).

    cond and uncond are batches as long as x, and pass through the network as one of 2b. At scale 1, and at noise levels
    outside `interval` (lowest, highest; Kynkäänniemi et al. 2404.07724), only cond is computed. `rescale` (0..1) mixes
    in the output at the standard deviation that it has without guidance (Lin et al. 2305.08891, eq. 14-16). A negative
    prompt is another uncond.
    """
    joint = cond if scale == 1 else Cond.cat([uncond, cond])
    low, high = interval or (0.0, float("inf"))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if scale == 1 or not low <= float(sigma.max()) <= high:
            return denoiser(x, sigma, cond)
        twice = torch.cat([sigma, sigma]) if sigma.ndim else sigma
        unconditional, conditional = denoiser(torch.cat([x, x]), twice, joint).chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return _rescaled(denoiser, x, sigma, guided, conditional, rescale) if rescale else guided

    return denoise


def _rescaled(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, guided: Tensor, conditional: Tensor, rescale: float
) -> Tensor:
    """`guided`, its network output mixed by `rescale` with itself at the standard deviation of the conditional one."""
    output, target = (denoiser.prediction.output(x, sigma, d) for d in (guided, conditional))
    std, target_std = (o.std(dim=tuple(range(1, x.ndim)), keepdim=True) for o in (output, target))
    gain = torch.where(std > 0, rescale * target_std / std, rescale)  # a constant output has no deviation to scale
    return denoiser.prediction.denoised(x, sigma, output * (gain + 1 - rescale))


def masked(denoise: Denoise, known: Tensor, mask: Tensor, n: Tensor, start: float = float("inf")) -> Denoise:
    """Inpainting with an ordinary network: what lies outside the mask is known (RePaint 2201.09865, eq. 8).

    `mask` (b or 1, 1 or c, h, w) is 1 where the picture is drawn and 0 where it is `known` (b, c, h, w), in x's dtype.
    Before each call below the noise level `start`, where x is as the run began, x outside the mask is set to
    known + sigma * n, with the unit noise n (b, c, h, w) of the start; denoised is known there. So the inside is what
    diffusers computes by mixing its latents after each step. Outside, a sampler whose last step is to denoised ends at
    known; the others (ddim, pndm, lms) come near it.
    """

    def inpaint(x: Tensor, sigma: Tensor) -> Tensor:
        if float(sigma.max()) < start:
            x = torch.lerp(noised(known, n, sigma), x, mask)
        return torch.lerp(known, denoise(x, sigma), mask)

    return inpaint
