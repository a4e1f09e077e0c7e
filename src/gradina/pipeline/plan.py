"""From a request to its batches, and from each to what its sampler needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradina.diffusion.denoiser import Denoise, noised, with_channels
from gradina.diffusion.guidance import masked
from gradina.diffusion.noise import Noise
from gradina.diffusion.samplers import SAMPLERS, SamplerSpec
from gradina.diffusion.schedule import img2img_sigmas, sampling_sigmas
from gradina.errors import RequestError
from gradina.images.open import open_mask, open_picture, resize
from gradina.ineffective import (
    concept_notes,
    guidance_notes,
    mask_notes,
    prompt_notes,
    sampler_notes,
    start_notes,
)
from gradina.pipeline.conditioning import chunk_count, guided
from gradina.pipeline.model import StableDiffusion, to_pixels
from gradina.request import Request

log = logging.getLogger(__name__)

AT_ONCE = 64 * 64  # places of latents that are drawn in one batch: one 512x512 picture, or many small ones


@dataclass(frozen=True)
class Plan:
    """All that a sampler needs to draw one batch, and the pictures that it starts from."""

    request: Request  # resolved; one prompt for each picture
    denoise: Denoise
    x: Tensor
    sigmas: Tensor
    noise: Noise
    init: Image.Image | None
    mask: Image.Image | None  # 255 where the picture is drawn anew, else 0
    known: Tensor | None = None  # the latents of init, and
    inside: Tensor | None = None  # 1 where they are drawn anew, else 0: where the U-Net itself reads no mask


def plans(model: StableDiffusion, request: Request) -> Iterator[Plan]:
    """The batches in which a request is drawn; the first is prepared at once, so that errors come early."""
    whole = resolved(model, request)
    model = model.adapted(whole)
    note_ineffective(model, whole)
    first, *rest = batches(model, whole)
    return chain([prepare(model, first)], (prepare(model, part) for part in rest))


def resolved(model: StableDiffusion, request: Request) -> Request:
    """The request with the model's defaults; a picture to start from keeps its shape, at the model's number of pixels.

    Raises RequestError if the model cannot draw at that size.
    """
    unit, defaults = max(8, model.vae.config.factor), model.defaults
    if request.init_image is not None and request.width is None and request.height is None:
        width, height = open_picture(request.init_image).size
        scale = (defaults.width * defaults.height / (width * height)) ** 0.5
        sides = (max(unit, round(side * scale / unit) * unit) for side in (width, height))
        request = replace(request, **dict(zip(("width", "height"), sides, strict=True)))
    request = request.resolved(defaults)
    for name in ("width", "height"):
        if getattr(request, name) % unit:
            raise RequestError(f"{name}: got {getattr(request, name)}, expected a multiple of {unit} for this model")
    request.alone(len(request.prompts) - 1)  # raises if its seed is too large
    return request


def note_ineffective(model: StableDiffusion, request: Request) -> None:
    """Logs a warning for each field of a resolved request that has no effect on the picture."""
    row = SAMPLERS[cast(str, request.sampler)]
    sigmas = _levels(model, request, row).tolist()
    notes = chain(
        prompt_notes(request),
        guidance_notes(request, sigmas[:-1]),
        sampler_notes(request, row.options),
        start_notes(request, len(sigmas)),
        concept_notes(_unread(model, request)),
    )
    if request.mask_image is not None:
        grey, factor = resize(open_mask(request.mask_image), *_size(request)), model.vae.config.factor
        mask = _black_and_white(grey)
        drawn = bool(_small(mask, factor).any())
        notes = chain(notes, mask_notes(request, grey, mask, drawn, factor))
    for note in notes:
        log.warning(note)


def _unread(model: StableDiffusion, request: Request) -> list[tuple[str, str]]:
    """The words, and their files, that were added to the model's, and that no prompt holds."""
    read = {i for text in (*request.prompts, request.negative_prompt) for i in model.tokenizer.ids(text)}
    first = {concept: model.tokenizer.ids(concept.token)[0] for concept in model.concepts}
    return [(concept.token, concept.said) for concept, i in first.items() if i not in read]


def batches(model: StableDiffusion, request: Request) -> list[Request]:
    """A resolved request cut into what is drawn at once: prompts of one length in tokens, and not too many places."""
    _, h, w = _shape(model, request)
    at_once, prompts = max(1, AT_ONCE // (h * w)), request.prompts
    parts = []
    for _, run in groupby(range(len(prompts)), key=lambda i: chunk_count(model, request, prompts[i])):
        rows = list(run)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            seed = cast(int, request.seed) + some[0]
            parts.append(replace(request, prompt=tuple(prompts[i] for i in some), seed=seed, images=1))
    return parts


@torch.no_grad()
def prepare(model: StableDiffusion, request: Request) -> Plan:
    """From a resolved request to what its sampler needs: text states, noise levels, where to start, what to ask.

    Random numbers are drawn in the order in which diffusers draws them.
    """
    row, shape = SAMPLERS[cast(str, request.sampler)], _shape(model, request)
    init, mask = _pictures(request)
    sigmas = _levels(model, request, row)
    reads_mask = model.unet.config.channels > shape[0]
    from_noise = init is None or (mask is not None and request.strength == 1)
    noise = Noise([cast(int, request.seed) + i for i in range(len(request.prompts))], shape, model.device)
    known = inside = None
    if init is not None and not (reads_mask and from_noise):
        known = model.encode(to_pixels(init)[None], noise() if len(sigmas) > 1 else None)
    n = noise()
    if known is None or from_noise:
        x = n * row.init_noise_sigma(cast(str, request.schedule), float(sigmas[0]))
    else:
        x = noised(known, n, sigmas[0])

    network = model.network(request.reuse)
    if reads_mask:
        network = with_channels(network, _mask_channels(model, init, mask, noise))
    denoise = guided(model, request, network, row)
    if known is not None and mask is not None and not reads_mask:
        noise()  # with which diffusers encodes the masked picture, for U-Nets that read it
        inside = _small(mask, model.vae.config.factor).to(known)
        denoise = masked(denoise, known, inside, n, start=float(sigmas[0]))
    return Plan(request, denoise, x, sigmas, noise, init, mask, known, inside)


def _pictures(request: Request) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture to start from and its mask, of the size that is drawn; the mask is black and white."""
    size = _size(request)
    init = None if request.init_image is None else resize(open_picture(request.init_image), *size)
    mask = None if request.mask_image is None else resize(open_mask(request.mask_image), *size)
    return init, mask and _black_and_white(mask)


def _size(request: Request) -> tuple[int, int]:
    """Width and height in pixels of a resolved request."""
    return cast(int, request.width), cast(int, request.height)


def _black_and_white(mask: Image.Image) -> Image.Image:
    return mask.point(lambda value: 255 * (value >= 128))


def _levels(model: StableDiffusion, request: Request, row: SamplerSpec) -> Tensor:
    """The noise levels of the walk; a strength that is too small for a step leaves one level, 0."""
    sigmas = sampling_sigmas(
        model.schedule, cast(str, request.schedule), cast(int, request.steps), row.final, row.whole_t
    )
    left = sigmas if request.init_image is None else img2img_sigmas(sigmas, request.strength)
    return left if len(left) > 1 else torch.zeros_like(left)


def _mask_channels(model: StableDiffusion, init: Image.Image | None, mask: Image.Image | None, noise: Noise) -> Tensor:
    """What a nine-channel U-Net reads behind x: the mask, and the latents of the picture, grey where it draws."""
    (_, h, w), factor = noise.shape, model.vae.config.factor
    drawn, pixels = torch.ones(1, 1, h, w), torch.zeros(1, 3, h * factor, w * factor)
    if init is not None and mask is not None:
        drawn, pixels = _small(mask, factor), to_pixels(init)[None] * (torch.from_numpy(np.array(mask)) < 128)
    kept = model.encode(pixels, noise())
    return torch.cat([drawn.to(kept).expand(len(kept), -1, -1, -1), kept], dim=1)


def _small(mask: Image.Image, factor: int) -> Tensor:
    """A mask at the size of latents (1, 1, h, w): 1 where the picture is drawn; as diffusers, by its corner pixels."""
    return torch.from_numpy(np.array(mask)[::factor, ::factor] >= 128)[None, None].float()


def _shape(model: StableDiffusion, request: Request) -> tuple[int, int, int]:
    """Of the latents of one picture."""
    factor = model.vae.config.factor
    return (model.vae.config.latent_channels, cast(int, request.height) // factor, cast(int, request.width) // factor)
