"""From prompts to what the U-Net is conditioned on, with the words and LoRAs that a request brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gradina.adapters.lora import merged
from gradina.adapters.textual_inversion import with_concepts
from gradina.diffusion.conditioning import Cond
from gradina.errors import RequestError
from gradina.files import file_sha256
from gradina.pipeline.model import StableDiffusion
from gradina.request import Request, parse_concept
from gradina.weights.formats.imagic import read_imagic
from gradina.weights.formats.lora import read_lora
from gradina.weights.formats.textual_inversion import read_embedding


def adapted(model: StableDiffusion, request: Request) -> StableDiffusion:
    """A copy of a model with the LoRAs of a request merged, its textual inversions in the tokenizer, and its edit.

    The last copy is cached, by the content of the files. Raises WeightsError for a file that does not fit.
    """
    path = None if request.edit is None else request.edit[0]
    files = [parse_concept(concept)[1] for concept in request.concepts] + [file for file, _ in request.loras]
    files += [path] if path else []
    if not files:
        return model
    hashes = [file_sha256(file) if Path(file).is_file() else "" for file in files]
    key = (request.concepts, request.loras, path, *hashes)
    if key not in model.adapted:
        stack, edit = [(read_lora(file, model.unet, model.text), scale) for file, scale in request.loras], None
        if path is not None:
            edit, lora = read_imagic(path, model.unet, model.text)
            stack.append((lora, 1.0))
        unet = merged(model.unet, *((lora.unet, scale) for lora, scale in stack))
        text = merged(model.text, *((lora.text, scale) for lora, scale in stack))
        concepts = tuple(map(read_embedding, request.concepts))
        tokenizer, text = with_concepts(model.tokenizer, text, concepts)
        model.adapted.clear()
        model.adapted[key] = replace(model, unet=unet, text=text, tokenizer=tokenizer, concepts=concepts, edit=edit)
    return model.adapted[key]


def encode_prompts(
    model: StableDiffusion, prompts: Sequence[list[int]], negative: list[int], share: float = 1.0
) -> tuple[Cond, Cond]:
    """cond and uncond, a batch each, for the tokens of prompts and of a negative prompt.

    `share` is that of the prompts where the model holds an edit. Raises RequestError where prompts take different
    numbers of chunks, as padding would change some of them.
    """
    count = model.tokenizer.chunk_count
    if len({max(count(prompt), count(negative)) for prompt in prompts}) > 1:
        room = model.tokenizer.length - 2
        raise RequestError(f"prompt: those of over {room} tokens and the others cannot share a batch; draw them apart")
    both = model.encode_text([*prompts, negative])
    cond, uncond = both[:-1], both[-1:].expand(len(prompts))
    return cond if model.edit is None else edited(cond, model.edit, share), uncond


def edited(cond: Cond, edit: Tensor, share: float) -> Cond:
    """Text states between those of an `edit` (n, width), fitted to a picture, and a `share` of those of the prompt.

    Source: Kawar et al., "Imagic" (2210.09276), equation 4.
    """
    fitted, states = edit.to(cond.states), cond.states
    if len(fitted) != states.shape[1]:
        raise RequestError(f"edit: it was made for a prompt of {len(fitted)} tokens, this one takes {states.shape[1]}")
    return replace(cond, states=torch.lerp(fitted.expand_as(states), states, share))
