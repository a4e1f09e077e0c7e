"""Untrained networks of a recipe's shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from gradina.models.clip import TextTower
from gradina.models.clip_vision import CLIP, vision_tower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.training.data.dataset import generator
from gradina.training.pretrain.latent_predictor import LatentPredictor
from gradina.training.pretrain.recipes import Recipe

Network = TypeVar("Network", bound=nn.Module)


class TextToLatent(nn.Module):
    """The networks that diffusion trains: the text tower, and the U-Net that is conditioned on its states."""

    def __init__(self, text: TextTower, unet: UNet) -> None:
        super().__init__()
        self.text, self.unet = text, unet


def seeded(make: Callable[[], Network], recipe: Recipe, part: str) -> Network:
    """A network with initial weights that depend on the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(recipe.seed, part).initial_seed())
        return make()


@dataclass(frozen=True)
class Networks:
    """Makes the networks of a recipe that read text; the vocabulary is the tokenizer's."""

    recipe: Recipe
    tokenizer: Tokenizer

    def clip(self) -> CLIP:
        """The contrastive pair."""
        tokens, text = self.tokenizer, self.recipe.clip.text
        text = replace(text, vocabulary=len(tokens), length=tokens.length, eos=tokens.eos)
        return CLIP(text, self.recipe.clip.vision)

    def final_clip(self) -> CLIP:
        """The contrastive pair that is shipped with the model: perhaps with another image tower."""
        clip, vision = self.clip(), self.recipe.vision
        if vision is not None and vision.network is not None:
            clip.vision = vision_tower(vision.network)
        return clip

    def latent_predictor(self, shape: tuple[int, int, int]) -> LatentPredictor:
        """The text tower with a small decoder to latents of a shape (c, h, w)."""
        words = self.recipe.words
        assert words is not None
        return LatentPredictor(self.clip().text, shape, words.width, words.layers, words.heads)

    def unet(self) -> UNet:
        """The U-Net, conditioned on the text tower's states."""
        return UNet(replace(self.recipe.unet.network, context=self.recipe.clip.text.width))

    def text_to_latent(self) -> TextToLatent:
        """Text tower and U-Net."""
        return TextToLatent(self.clip().text, self.unet())
