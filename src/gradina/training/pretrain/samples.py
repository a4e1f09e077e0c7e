"""How far is it? One picture for each stage, drawn with the averaged weights."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from gradina.images import grid
from gradina.models.clip import CLIP
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.generate import generate
from gradina.pipeline.model import to_image
from gradina.request import Request
from gradina.training.data.dataset import generator
from gradina.training.pretrain.experiment import Painter, Workshop
from gradina.training.pretrain.latent_predictor import Reader

SHOWN = 8
LOOKED_THROUGH = 320  # pictures
SEEDS = 4


@torch.no_grad()
def through_latents(shop: Workshop, vae: nn.Module) -> Image.Image:
    """Pictures above what comes back through the latents."""
    assert isinstance(vae, AutoencoderKL)
    pixels = shop.data.pixels(shop.rows(generator(shop.recipe.seed, "look"), SHOWN))
    back = vae.decode(vae.encode(pixels))
    return grid.grid([to_image(p) for p in (*pixels, *back)], columns=SHOWN, row_labels=("picture", "and back"))


@torch.no_grad()
def found_by_captions(shop: Workshop, clip: nn.Module) -> Image.Image:
    """For each of the recipe's prompts, the pictures among many that are nearest to it, nearest first."""
    assert isinstance(clip, CLIP)
    pixels = shop.data.pixels(shop.rows(generator(shop.recipe.seed, "look"), LOOKED_THROUGH))
    captions = prompts(shop)
    nearest = clip(shop.tokenizer(captions), pixels).topk(SHOWN, dim=1).indices
    return grid.grid([to_image(pixels[i]) for i in nearest.flatten()], columns=SHOWN, row_labels=captions)


@torch.no_grad()
def imagined(shop: Workshop, reader: nn.Module) -> Image.Image:
    """The recipe's prompts as the stand-in for the U-Net sees them: what their pictures are on average."""
    assert isinstance(reader, Reader)
    pixels = shop.vae.decode(reader(shop.tokenizer(prompts(shop))))
    return grid.grid([to_image(p) for p in pixels], columns=4, labels=prompts(shop))


def drawn(shop: Workshop, painter: nn.Module, side: int | None = None) -> Image.Image:
    """The recipe's prompts, a few seeds each, at the model's defaults, or `side` pixels wide and high."""
    assert isinstance(painter, Painter)
    request = Request(prompt=prompts(shop), images=SEEDS, seed=shop.recipe.seed, width=side, height=side)
    pictures = [picture.image for picture in generate(shop.model(painter), request)]
    return grid.grid(pictures, columns=SEEDS, row_labels=prompts(shop))


def prompts(shop: Workshop) -> tuple[str, ...]:
    """Those of the recipe, or the first of its data."""
    return shop.recipe.prompts or tuple(shop.data.texts()[:10])
