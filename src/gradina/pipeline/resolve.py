"""From a request to one with nothing left open, so that whatever is wrong with it is found before anything is drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradina.diffusion.samplers import SAMPLERS, SamplerSpec
from gradina.diffusion.schedule import img2img_sigmas, sampling_sigmas
from gradina.errors import RequestError
from gradina.images.open import open_mask_and_holes, open_picture, resize
from gradina.ineffective import mask_notes, notes
from gradina.pipeline.conditioning import adapted
from gradina.pipeline.model import StableDiffusion
from gradina.request import Defaults, Request

log = logging.getLogger(__name__)

MAX_BATCH_PIXELS = 64 * 64  # of latents in one batch: one picture of 512 x 512, or many small ones


@dataclass(frozen=True, eq=False, kw_only=True)
class Resolved:
    """A request with its defaults filled in, its files read, and its prompts tokenised."""

    model: StableDiffusion  # with the LoRAs, textual inversions and edit of the request
    request: Request  # no field is None that has a default
    settings: Defaults  # those fields
    ids: Mapping[str, list[int]]  # tokens of each prompt and of the negative prompt
    sampler: SamplerSpec
    sigmas: Tensor  # (n + 1,); one level alone, 0, is a run without steps
    init: Image.Image | None  # at the size of the picture
    mask: Image.Image | None  # likewise; 255 where the picture is drawn anew, else 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents of one picture (c, h, w)."""
        vae = self.model.vae.config
        return vae.latent_channels, self.settings.height // vae.factor, self.settings.width // vae.factor

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of x where a run starts from noise."""
        return self.sampler.init_noise_sigma(self.settings.schedule, float(self.sigmas[0]))

    def batches(self) -> list[range]:
        """The pictures that are drawn together: neighbours whose prompts take as many chunks of tokens."""
        (_, h, w), prompts = self.shape, self.request.prompts
        size = max(1, MAX_BATCH_PIXELS // (h * w))
        chunks = {text: self.model.tokenizer.chunk_count(ids) for text, ids in self.ids.items()}
        takes = [max(chunks[prompt], chunks[self.request.negative_prompt]) for prompt in prompts]
        runs = [list(run) for _, run in groupby(range(len(prompts)), key=takes.__getitem__)]
        return [range(i, min(i + size, run[-1] + 1)) for run in runs for i in run[::size]]


def resolve(model: StableDiffusion, request: Request) -> Resolved:
    """The request with the model's defaults; each of its files is opened and each prompt tokenised once.

    Logs a warning for each field without effect. Raises RequestError, PictureError or WeightsError.
    """
    init = None if request.init_image is None else open_picture(request.init_image)
    grey, holes = (None, False) if request.mask_image is None else open_mask_and_holes(request.mask_image)
    request = (request if init is None else _shaped_like(init, request, model)).resolved(model.defaults)
    settings = Defaults(**{field.name: getattr(request, field.name) for field in fields(Defaults)})
    for name, side in (("width", settings.width), ("height", settings.height)):
        if side % _unit(model):
            raise RequestError(f"{name}: got {side}, expected a multiple of {_unit(model)} for this model")
    request.alone(len(request.prompts) - 1)  # raises if its seed is too large
    sampler, model = SAMPLERS[settings.sampler], adapted(model, request)
    sigmas = sampling_sigmas(model.schedule, settings.schedule, settings.steps, sampler.final, sampler.whole_t)
    sigmas = sigmas if init is None else img2img_sigmas(sigmas, request.strength)
    grey = None if grey is None else resize(grey, settings.width, settings.height)
    resolved = Resolved(
        model=model,
        request=request,
        settings=settings,
        ids={text: model.tokenizer.ids(text) for text in {*request.prompts, request.negative_prompt}},
        sampler=sampler,
        sigmas=sigmas if len(sigmas) > 1 else torch.zeros_like(sigmas),
        init=None if init is None else resize(init, settings.width, settings.height),
        mask=None if grey is None else grey.point(lambda value: 255 * (value >= 128)),
    )
    _warn_of_ineffective(resolved, grey, holes)
    return resolved


def _unit(model: StableDiffusion) -> int:
    """The pixels that both sides of a picture are multiples of."""
    return max(8, model.vae.config.factor)


def _shaped_like(init: Image.Image, request: Request, model: StableDiffusion) -> Request:
    """The request, where it leaves its size open, with the shape of `init` at the model's number of pixels."""
    if request.width is not None or request.height is not None:
        return request
    unit, pixels = _unit(model), model.defaults.width * model.defaults.height
    scale = (pixels / (init.width * init.height)) ** 0.5
    width, height = (max(unit, round(side * scale / unit) * unit) for side in init.size)
    return replace(request, width=width, height=height)


def _warn_of_ineffective(resolved: Resolved, grey: Image.Image | None, holes: bool) -> None:
    """Logs a warning for each field that has no effect on the picture."""
    model, request = resolved.model, resolved.request
    used = {i for ids in resolved.ids.values() for i in ids}
    unread = [(c.token, c.source) for c in model.concepts if model.tokenizer.ids(c.token)[0] not in used]
    for note in notes(request, resolved.sigmas.tolist(), resolved.sampler.options, unread):
        log.warning(note)
    if grey is not None and resolved.mask is not None:
        factor = model.vae.config.factor
        drawn = bool(latent_mask(resolved.mask, factor).any())
        for note in mask_notes(request, grey, resolved.mask, holes, drawn, factor):
            log.warning(note)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A mask at the size of latents (1, 1, h, w): 1 where the picture is drawn; its corner pixels, as in diffusers."""
    return torch.from_numpy(np.array(mask)[::factor, ::factor] >= 128)[None, None].float()
