"""Guidance wraps a denoiser and returns one: what a picture should be like is said here. Wrappers nest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradina.diffusion.denoiser import Denoise, Denoiser, noised


def cfg(
    denoiser: Denoiser,
    cond: Any,
    uncond: Any,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    cat: Callable[[list[Any]], Any] = torch.cat,
) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2207.12598, eq. 6): uncond + scale * (cond - uncond).

    cond and uncond are batches as long as x, put through the network as one (2b) made by `cat([uncond, cond])`. At
    scale 1, and at noise levels outside `interval` (lowest, highest; Kynkäänniemi et al. 2404.07724), only cond is
    computed. `rescale` (0..1) gives what the network says back the spread that it had without guidance (Lin et al.
    2305.08891, eq. 14-16). A negative prompt is another uncond.
    """
    joint = cond if scale == 1 else cat([uncond, cond])
    low, high = interval or (0.0, float("inf"))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if scale == 1 or not low <= float(sigma.max()) <= high:
            return denoiser(x, sigma, cond)
        twice = torch.cat([sigma, sigma]) if sigma.ndim else sigma
        without, conditional = denoiser(torch.cat([x, x]), twice, joint).chunk(2)
        guided = without + scale * (conditional - without)
        return _rescaled(denoiser, x, sigma, guided, conditional, rescale) if rescale else guided

    return denoise


def _rescaled(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, guided: Tensor, conditional: Tensor, rescale: float
) -> Tensor:
    """`guided` with the standard deviation that the network's own output has for each picture, mixed by `rescale`."""
    output, target = (denoiser.prediction.output(x, sigma, d) for d in (guided, conditional))
    spread, wanted = (o.std(dim=tuple(range(1, x.ndim)), keepdim=True) for o in (output, target))
    gain = torch.where(spread > 0, rescale * wanted / spread, rescale)  # what is the same everywhere has no spread
    return denoiser.prediction.denoised(x, sigma, output * (gain + 1 - rescale))


def masked(denoise: Denoise, known: Tensor, mask: Tensor, n: Tensor, start: float = float("inf")) -> Denoise:
    """Inpainting with an ordinary network: what lies outside the mask is known (RePaint 2201.09865, eq. 8).

    Where `mask` (b or 1, 1 or c, h, w) is 1 the picture is drawn, where it is 0 it is `known` (b, c, h, w); all are of
    x's dtype. Before each guess below the noise level `start`, where x is as the run began, x is put back outside the
    mask to known + sigma * n, with the unit noise n (b, c, h, w) of the start; after it the guess there is known. So
    the inside is what diffusers makes by mixing its latents after each step. Outside, a sampler that ends on its last
    guess ends at known; the others (ddim, pndm, lms) come near it.
    """

    def inpaint(x: Tensor, sigma: Tensor) -> Tensor:
        if float(sigma.max()) < start:
            x = torch.lerp(noised(known, n, sigma), x, mask)
        return torch.lerp(known, denoise(x, sigma), mask)

    return inpaint
