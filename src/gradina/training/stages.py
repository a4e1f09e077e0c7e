"""The rows of training from nothing: in which order the parts learn, and what each minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from gradina.diffusion.denoiser import Denoiser
from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.schedule import Schedule
from gradina.models.clip import CLIP, TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL
from gradina.training.checkpoint import load_average
from gradina.training.data import Examples, generator
from gradina.training.loop import Loss, Settings
from gradina.training.objectives import autoencoding, contrastive, denoising
from gradina.training.recipes import Recipe
from gradina.training.sources import load_data

LOOKED_AT = 2048  # pictures from which the scale of the latents is measured


@dataclass(frozen=True)
class Stage:
    """One part of the model and how it learns."""

    network: nn.Module
    settings: Settings
    loss: Loss


@dataclass(frozen=True)
class Workshop:
    """A recipe, its data and the folder in which its parts are made; what is derived is made once, when asked for."""

    recipe: Recipe
    folder: Path

    @cached_property
    def data(self) -> Examples:
        """What there is to learn from."""
        return load_data(self.recipe)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own vocabulary, learnt from all captions."""
        return Tokenizer.train(self.data.texts(), self.recipe.vocabulary.size, self.recipe.vocabulary.length)

    @cached_property
    def schedule(self) -> Schedule:
        """The noise levels that the U-Net learns, and how others are told to space them: as the model's defaults do."""
        law, spacing = self.recipe.schedule, self.recipe.defaults.schedule
        spacing = spacing if spacing in ("leading", "linspace", "trailing") else "leading"
        return Schedule.from_betas(law.betas(), law=law, timestep_spacing=spacing)

    def state(self, stage: str) -> Path:
        """Where a stage's state is kept."""
        return self.folder / stage / "state.safetensors"

    def build(self, make: Callable[[], nn.Module], part: str) -> nn.Module:
        """A network with weights that depend on the recipe's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(self.recipe.seed, part).initial_seed())
            return make()

    def rows(self, key: torch.Generator, count: int) -> Tensor:
        """Examples drawn evenly."""
        return torch.randint(len(self.data), (count,), generator=key)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder of the first stage, its scale set so that latents have a standard deviation of 1."""
        vae = load_average(lambda: AutoencoderKL(self.recipe.vae.network), self.state("vae"))
        key = generator(self.recipe.seed, "scale")
        with torch.no_grad():
            pixels = self.data.pixels(self.rows(key, LOOKED_AT))
            z = torch.cat([vae.posterior(batch).mean for batch in torch.split(pixels, 256)])
        vae.config = replace(vae.config, scale=round(1 / z.std().item(), 5))
        return vae

    def clip(self) -> CLIP:
        """The pair of the second stage, not trained yet; its vocabulary is the tokenizer's."""
        text = replace(
            self.recipe.clip.text,
            vocabulary=len(self.tokenizer),
            length=self.tokenizer.length,
            eos=self.tokenizer.eos,
        )
        return CLIP(text, self.recipe.clip.vision)

    @property
    def unet(self) -> UNetConfig:
        """The shape of the third stage's network: it reads what the text tower says."""
        return replace(self.recipe.unet.network, context=self.recipe.clip.text.width)

    @cached_property
    def text(self) -> TextTower:
        """The text tower of the second stage."""
        return load_average(self.clip, self.state("clip")).text


def vae_stage(shop: Workshop) -> Stage:
    """Pictures through the latents and back."""
    recipe = shop.recipe.vae
    network = shop.build(lambda: AutoencoderKL(recipe.network), "vae")
    factor, channels = recipe.network.factor, recipe.network.latent_channels

    def loss(vae: nn.Module, k: int) -> Tensor:
        assert isinstance(vae, AutoencoderKL)
        key = generator(shop.recipe.seed, "vae", k)
        pixels = cropped(shop.data.pixels(shop.rows(key, recipe.training.batch)), recipe.crop, key)
        noise = torch.randn(len(pixels), channels, *(side // factor for side in pixels.shape[2:]), generator=key)
        return autoencoding(vae, pixels, noise, recipe.kl_weight)

    return Stage(network, recipe.training, loss)


def cropped(pixels: Tensor, side: int | None, key: torch.Generator) -> Tensor:
    """A random square of each picture (b, 3, side, side), or the pictures as they are."""
    if side is None or side >= min(pixels.shape[2:]):
        return pixels
    tops, lefts = ((torch.rand(len(pixels), generator=key) * (n - side + 1)).long().tolist() for n in pixels.shape[2:])
    return torch.stack([p[:, y : y + side, x : x + side] for p, y, x in zip(pixels, tops, lefts, strict=True)])


def clip_stage(shop: Workshop) -> Stage:
    """Captions and pictures find each other."""
    recipe = shop.recipe.clip

    def loss(clip: nn.Module, k: int) -> Tensor:
        assert isinstance(clip, CLIP)
        key = generator(shop.recipe.seed, "clip", k)
        rows = shop.rows(key, recipe.training.batch)
        texts, true = shop.data.captions(rows, key)
        return contrastive(clip, shop.tokenizer(texts), shop.data.pixels(rows), true)

    return Stage(shop.build(shop.clip, "clip"), recipe.training, loss)


def unet_stage(shop: Workshop) -> Stage:
    """Noise is told from latents, with the caption as a hint."""
    recipe, text = shop.recipe.unet, shop.text
    network = shop.build(lambda: UNet(shop.unet), "unet")
    mean, std = encoded(shop.vae, shop.data)
    schedule, prediction = shop.schedule, prediction_named(recipe.prediction)

    def loss(unet: nn.Module, k: int) -> Tensor:
        key = generator(shop.recipe.seed, "unet", k)
        rows = shop.rows(key, recipe.training.batch)
        texts, _ = shop.data.captions(rows, key)
        dropped = (torch.rand(len(rows), generator=key) < recipe.caption_dropout).tolist()
        with torch.no_grad():
            cond = text(shop.tokenizer(["" if drop else t for t, drop in zip(texts, dropped, strict=True)]))
        latents = mean[rows] + std[rows] * torch.randn(len(rows), *mean.shape[1:], generator=key)
        noise = torch.randn(latents.shape, generator=key)
        sigma = schedule.drawn(len(rows), key)
        return denoising(Denoiser(unet, schedule, prediction), latents, noise, sigma, cond)

    return Stage(network, recipe.training, loss)


@torch.no_grad()
def encoded(vae: AutoencoderKL, data: Examples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of every picture, each (n, c, h, w)."""
    parts = [vae.posterior(data.pixels(rows)) for rows in torch.split(torch.arange(len(data)), 256)]
    mean = torch.cat([p.mean for p in parts]) * vae.config.scale
    return mean, torch.cat([torch.exp(0.5 * p.logvar) for p in parts]) * vae.config.scale


STAGES: dict[str, Callable[[Workshop], Stage]] = {"vae": vae_stage, "clip": clip_stage, "unet": unet_stage}
