"""Sample sheets: a picture of each stage's progress, of the averaged weights."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from gradina.images import grid
from gradina.models.clip_vision import CLIP
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.generate import generate
from gradina.pipeline.model import to_image
from gradina.request import Request
from gradina.training.data.dataset import generator
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.latent_predictor import LatentPredictor
from gradina.training.pretrain.networks import TextToLatent

COLUMNS = 8
SEARCHED = 320  # pictures
SEEDS = 4


@torch.no_grad()
def reconstructed(experiment: Experiment, vae: AutoencoderKL) -> Image.Image:
    """Pictures above their reconstructions."""
    pixels = some_pixels(experiment, COLUMNS).to(vae.quant.weight.device)
    back = vae.decode(vae.encode(pixels))
    return grid.grid([to_image(p) for p in (*pixels, *back)], columns=COLUMNS, row_labels=("picture", "and back"))


@torch.no_grad()
def retrieved(experiment: Experiment, clip: CLIP) -> Image.Image:
    """For each prompt, the most similar of many pictures."""
    captions, device = prompts(experiment), clip.logit_scale.device
    pixels = some_pixels(experiment, SEARCHED).to(device)
    nearest = clip(experiment.tokenizer(captions).to(device), pixels).topk(COLUMNS, dim=1).indices
    return grid.grid([to_image(pixels[i]) for i in nearest.flatten()], columns=COLUMNS, row_labels=captions)


@torch.no_grad()
def predicted(experiment: Experiment, predictor: LatentPredictor) -> Image.Image:
    """The decoded latents that are predicted for the prompts: the mean of their pictures."""
    ids = experiment.tokenizer(prompts(experiment)).to(predictor.places.device)
    pixels = experiment.vae.decode(predictor(ids))
    return grid.grid([to_image(p) for p in pixels], columns=4, labels=prompts(experiment))


def generated(experiment: Experiment, networks: TextToLatent, side: int | None = None) -> Image.Image:
    """The prompts, a few seeds each, at the model's defaults, or `side` pixels wide and high."""
    seed = experiment.recipe.seed
    request = Request(prompt=prompts(experiment), images=SEEDS, seed=seed, width=side, height=side)
    pictures = [picture.image for picture in generate(experiment.model(networks), request)]
    return grid.grid(pictures, columns=SEEDS, row_labels=prompts(experiment))


def some_pixels(experiment: Experiment, count: int) -> Tensor:
    """Pictures drawn from the data, always the same."""
    key = generator(experiment.recipe.seed, "look")
    return experiment.data.pixels(torch.randint(len(experiment.data), (count,), generator=key))


def prompts(experiment: Experiment) -> tuple[str, ...]:
    """The recipe's prompts, or the first of its data."""
    return experiment.recipe.prompts or tuple(experiment.data.texts()[:10])
