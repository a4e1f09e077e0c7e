"""From a resolved request to its batches, and from each to its plan: where it starts, and what denoises it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradina.diffusion.denoiser import Denoise, Denoiser, Network, noised, with_channels
from gradina.diffusion.guidance import cfg, masked
from gradina.diffusion.noise import Noise
from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.step import variance_preserving
from gradina.images.tensor import to_pixels
from gradina.ineffective import UNGUIDED
from gradina.pipeline.conditioning import encode_prompts
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.resolve import Resolved, latent_mask, resolve
from gradina.request import Request


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """All that a sampler needs to draw one batch."""

    resolved: Resolved
    pictures: range  # the indices of the batch in the request
    noise: Noise
    x: Tensor  # (b, c, h, w) at sigmas[0]
    denoise: Denoise
    kept: tuple[Tensor, Tensor] | None = None  # latents to keep, and a mask of them: 1 where they are drawn anew

    @property
    def sigmas(self) -> Tensor:
        """The noise levels (n + 1,) of a run of n steps."""
        return self.resolved.sigmas

    @property
    def latents(self) -> Tensor:
        """x in variance-preserving units, as `Step.latents` after the first step."""
        return variance_preserving(self.x, float(self.sigmas[0]))


def plans(model: StableDiffusion, request: Request, one_batch: bool = False) -> Iterator[Plan]:
    """A plan for each batch of a request; the first is made at once, so that errors come before anything is drawn."""
    resolved = resolve(model, request)
    first, *rest = [range(len(resolved.request.prompts))] if one_batch else resolved.batches()
    return chain([prepare(resolved, first)], (prepare(resolved, pictures) for pictures in rest))


@torch.no_grad()
def prepare(resolved: Resolved, pictures: range) -> Plan:
    """The plan of a batch: its noise, where it starts, and the denoiser of its prompts."""
    model, request, init, mask = resolved.model, resolved.request, resolved.init, resolved.mask
    noise = Noise([request.seeds[i] for i in pictures], resolved.shape, model.device)
    network, kept = model.network(request.reuse), None
    if model.unet.config.channels > resolved.shape[0]:
        x, channels = inpaint_with_channels(resolved, noise)
        denoise = guided(resolved, pictures, with_channels(network, channels))
    elif init is not None and mask is not None:
        x, known, n = start_under_mask(resolved, init, noise)
        kept = known, latent_mask(mask, model.vae.config.factor).to(known)
        denoise = masked(guided(resolved, pictures, network), *kept, n, start=float(resolved.sigmas[0]))
    else:
        x = start_from_noise(resolved, noise) if init is None else start_from_image(resolved, init, noise)
        denoise = guided(resolved, pictures, network)
    return Plan(resolved=resolved, pictures=pictures, noise=noise, x=x, denoise=denoise, kept=kept)


def guided(resolved: Resolved, pictures: range, network: Network) -> Denoise:
    """The denoiser of a batch's prompts, with classifier-free guidance."""
    model, request, scale = resolved.model, resolved.request, resolved.settings.guidance_scale
    prompts = [resolved.ids[request.prompts[i]] for i in pictures]
    share = 1.0 if request.edit is None else request.edit[1]
    cond, uncond = encode_prompts(model, prompts, resolved.ids[request.negative_prompt], share)
    denoiser = Denoiser(network, model.schedule, prediction_named(model.prediction), resolved.sampler.whole_t)
    scale = 1.0 if scale in UNGUIDED else scale
    return cfg(denoiser, cond, uncond, scale, request.guidance_rescale, request.guidance_interval)


# Starts: each draws random tensors in the order in which diffusers' pipelines draw them.


def start_from_noise(resolved: Resolved, noise: Noise) -> Tensor:
    """x (b, c, h, w) of noise alone. Draws x."""
    return noise() * resolved.init_noise_sigma


def start_from_image(resolved: Resolved, init: Image.Image, noise: Noise) -> Tensor:
    """x (b, c, h, w), the latents of `init` with noise. Draws the encoder's sample, then the noise."""
    return noised(encode_init(resolved, init, noise), noise(), resolved.sigmas[0])


def start_under_mask(resolved: Resolved, init: Image.Image, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """x for an ordinary U-Net, noise alone at strength 1; the latents of `init`; and the noise n; all (b, c, h, w).

    Draws the encoder's sample, then n, then one more: diffusers encodes the masked picture with it, for U-Nets that
    read it, whichever it has.
    """
    known, n, _ = encode_init(resolved, init, noise), noise(), noise()
    from_noise = resolved.request.strength == 1
    return n * resolved.init_noise_sigma if from_noise else noised(known, n, resolved.sigmas[0]), known, n


def inpaint_with_channels(resolved: Resolved, noise: Noise) -> tuple[Tensor, Tensor]:
    """x, and what a U-Net for inpainting reads with it: the mask, and the latents of the picture, grey under the mask.

    Draws those of the start, from noise at strength 1 under a mask, then the encoder's sample of the masked picture.
    """
    init, mask, factor = resolved.init, resolved.mask, resolved.model.vae.config.factor
    from_noise = init is None or (mask is not None and resolved.request.strength == 1)
    x = start_from_noise(resolved, noise) if init is None or from_noise else start_from_image(resolved, init, noise)
    _, h, w = resolved.shape
    inside, pixels = torch.ones(1, 1, h, w), torch.zeros(1, 3, h * factor, w * factor)
    if init is not None and mask is not None:
        inside, pixels = latent_mask(mask, factor), to_pixels(init)[None] * (torch.from_numpy(np.array(mask)) < 128)
    z = resolved.model.encode(pixels, noise())
    return x, torch.cat([inside.to(z).expand(len(z), -1, -1, -1), z], dim=1)


def encode_init(resolved: Resolved, init: Image.Image, noise: Noise) -> Tensor:
    """The latents of `init` (b, c, h, w), a sample for each picture, or the mean where no step follows."""
    return resolved.model.encode(to_pixels(init)[None], noise() if len(resolved.sigmas) > 1 else None)
