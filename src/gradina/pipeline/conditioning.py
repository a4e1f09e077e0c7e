"""From prompts to what guides the network."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoise, Denoiser, Network
from gradina.diffusion.guidance import cfg
from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.samplers import SamplerSpec
from gradina.errors import RequestError
from gradina.ineffective import (
    UNGUIDED,
)
from gradina.pipeline.model import StableDiffusion
from gradina.request import Request
from gradina.weights.formats.imagic import read_states


def guided(model: StableDiffusion, request: Request, network: Network, row: SamplerSpec) -> Denoise:
    """The model's denoiser for these prompts, with classifier-free guidance."""
    prompts = request.prompts
    if len({chunk_count(model, request, prompt) for prompt in prompts}) > 1:
        room = model.tokenizer.length - 2
        raise RequestError(f"prompt: those of over {room} tokens and the others cannot share a batch; draw them apart")
    both = model.encode_text([*prompts, request.negative_prompt])
    cond, uncond = both[:-1], both[-1:].expand(len(prompts))
    if request.edit is not None:
        cond = Cond(edited(model, cond.states, *request.edit))
    denoiser = Denoiser(network, model.schedule, prediction_named(model.prediction), row.whole_t)
    scale = 1.0 if request.guidance_scale in UNGUIDED else cast(float, request.guidance_scale)
    return cfg(denoiser, cond, uncond, scale, request.guidance_rescale, request.guidance_interval)


def edited(model: StableDiffusion, target: Tensor, path: str, share: float) -> Tensor:
    """Text states between those that were fitted to a picture and those of the prompt.

    Source: Kawar et al., "Imagic" (2210.09276), equation 4.
    """
    states = read_states(path, model.text.config.width).to(target)
    if len(states) != target.shape[1]:
        raise RequestError(f"edit: it was made for a prompt of {len(states)} tokens, this one takes {target.shape[1]}")
    return torch.lerp(states.expand_as(target), target, share)


def chunk_count(model: StableDiffusion, request: Request, prompt: str) -> int:
    """How many chunks of tokens a prompt and its negative prompt take."""
    return max(map(model.tokenizer.chunk_count, (prompt, request.negative_prompt)))
