"""What the stages of a run share: data, vocabulary, latents and finished networks; each made once, on first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradina.diffusion.schedule import Schedule
from gradina.models.clip import TextTower
from gradina.models.clip_vision import CLIP, vision_tower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.model import StableDiffusion
from gradina.training.checkpoint import cached_tensors, load_average
from gradina.training.data.dataset import Dataset, generator
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import IconScenes
from gradina.training.loop import autocast, device_of
from gradina.training.losses import resized
from gradina.training.pretrain.folder import RunFolder
from gradina.training.pretrain.networks import LatentPredictor, TextToLatent
from gradina.training.pretrain.recipes import FORMER_KEYS
from gradina.training.settings import Settings
from gradina.weights.formats.clip import ContrastivePair

Network = TypeVar("Network", bound=nn.Module)
log = logging.getLogger(__name__)

ENCODE_BATCH = 8  # pictures; larger batches do not fit into the caches, and take twice as long
CHECKED_CAPTIONS = 1000  # for those that are too long


class Experiment(RunFolder):
    """A recipe, the folder of its run, and what has been made of it so far."""

    @cached_property
    def data(self) -> Dataset:
        """The training data."""
        return load_dataset(self.recipe)

    def composed(self, composition: Mapping[str, Any]) -> Dataset:
        """The training data, with other values of the fields that decide synthetic pictures; the icons are the same."""
        if not composition:
            return self.data
        assert isinstance(self.data, IconScenes)
        return replace(self.data, **composition)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """A vocabulary learned from all captions; a warning says how many captions it truncates."""
        recipe = self.recipe.vocabulary
        tokenizer = Tokenizer.train(self.data.texts(), recipe.size, recipe.length)
        rows = torch.arange(min(len(self.data), CHECKED_CAPTIONS))
        captions = self.data.captions(rows, self.generator("captions"))[0]
        cut = [caption for caption in captions if tokenizer.chunk_count(caption) > 1]
        if cut:
            log.warning(
                "vocabulary.length: %d of %d captions have more than the %d tokens that are read; their ends are cut "
                "off (the first: %r); give a greater length",
                len(cut), len(captions), recipe.length - 2, shorten(cut[0], 80),
            )  # fmt: skip
        return tokenizer

    @cached_property
    def schedule(self) -> Schedule:
        """The noise levels of training; the spacing that is written for other programs is that of the defaults."""
        law, spacing = self.recipe.schedule, self.recipe.defaults.schedule
        spacing = spacing if spacing in ("leading", "linspace", "trailing") else "leading"
        return Schedule.from_betas(law.betas(), law=law, timestep_spacing=spacing)

    def generator(self, use: str, *key: int) -> torch.Generator:
        """The random generator of batch k of a stage, or of another use: seeded by former names, as older runs were."""
        return generator(self.recipe.seed, FORMER_KEYS.get(use, use), *key)

    def untrained(self, make: Callable[[], Network], part: str) -> Network:
        """A network with initial weights that depend on the recipe's seed and the part alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.generator(part).initial_seed())
            return make()

    def finished(self, make: Callable[[], Network], stage: str) -> Network:
        """A network with the weights of a finished stage."""
        return load_average(self.untrained(make, stage), self.weights(stage))

    def new_vae(self) -> AutoencoderKL:
        """An autoencoder of the recipe's shape."""
        return AutoencoderKL(self.recipe.vae.network)

    def new_clip(self) -> CLIP:
        """A contrastive pair; its vocabulary is the tokenizer's."""
        tokens, recipe = self.tokenizer, self.recipe.clip
        return CLIP(replace(recipe.text, vocabulary=len(tokens), length=tokens.length, eos=tokens.eos), recipe.vision)

    def new_final_clip(self) -> CLIP:
        """A contrastive pair such as is shipped with the model: perhaps with another image tower."""
        clip, encoder = self.new_clip(), self.recipe.image_encoder
        if encoder is not None and encoder.network is not None:
            clip.vision = vision_tower(encoder.network)
        return clip

    def new_latent_predictor(self) -> LatentPredictor:
        """A text tower with a small decoder to the latents of whole pictures."""
        c, (_, channels, height, width) = self.recipe.text_encoder, self.latents()[0].shape
        assert c is not None
        return LatentPredictor(self.new_clip().text, (channels, height, width), c.width, c.layers, c.heads)

    def new_unet(self) -> UNet:
        """A U-Net, conditioned on the text tower's states."""
        return UNet(replace(self.recipe.unet.network, context=self.recipe.clip.text.width))

    def new_text_to_latent(self) -> TextToLatent:
        """A text tower and a U-Net."""
        return TextToLatent(self.new_clip().text, self.new_unet())

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The finished autoencoder, scaled so that latents have a standard deviation of 1."""
        vae = self.finished(self.new_vae, self.phases("vae")[-1])
        mean, _ = self._posteriors(vae)
        vae.config = replace(vae.config, scale=round(1 / mean.std().item(), 5))
        return vae

    @property
    def final_vae(self) -> AutoencoderKL:
        """The autoencoder with the decoder that is trained after the U-Net, if that stage is there and finished."""
        vae = self.vae
        if "decoder" in self.stages and self.is_finished("decoder"):
            final = self.finished(self.new_vae, "decoder")
            final.config = vae.config
            return final
        return vae

    @cached_property
    def clip(self) -> CLIP:
        """The finished contrastive pair."""
        return self.finished(self.new_clip, "clip")

    @cached_property
    def text(self) -> TextTower:
        """The text tower with which diffusion starts: the pair's, or the one pretrained by latent prediction."""
        if self.recipe.text_encoder:
            return self.finished(self.new_latent_predictor, "text_encoder").text
        return self.clip.text

    @property
    def text_to_latent(self) -> TextToLatent:
        """The finished text tower and U-Net."""
        return self.finished(self.new_text_to_latent, self.phases("unet")[-1])

    @property
    def pair(self) -> ContrastivePair:
        """The finished contrastive pair with what retrieval needs."""
        (last,) = self.phases("image_encoder") or self.phases("clip")
        clip = self.finished(self.new_final_clip, last)
        return ContrastivePair(clip=clip, tokenizer=self.tokenizer, phrases=self.data.phrases(), name=self.recipe.name)

    def latents(self, side: int | None = None, composition: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of every picture of `composed` data, each (n, c, h, w).

        The pictures are `side` pixels wide, or as they are.
        """
        mean, std = self._posteriors(self.vae, side, composition)
        return mean * self.vae.config.scale, std * self.vae.config.scale

    def _posteriors(
        self, vae: AutoencoderKL, side: int | None = None, composition: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, not scaled; kept in a file."""
        composition = composition or {}
        suffixes = [f"{FORMER_KEYS.get(name, name)}-{x:g}" for name, x in composition.items()]
        suffixes = suffixes if side is None else [str(side), *suffixes]
        path, data = self.path / f"{'-'.join(['latents', *suffixes])}.safetensors", self.composed(composition)
        phases = zip(self.phases("vae"), self.recipe.vae.training, strict=True)
        last = [name for name, phase in phases if phase.only != "decoder"][-1]
        settings = self.stages[last].settings
        cached = cached_tensors(path, self.fingerprint(last), lambda: encoded(vae, data, side, settings))
        return cached["mean"], cached["std"]

    def model(self, networks: TextToLatent) -> StableDiffusion:
        """The whole model around a text tower and a U-Net."""
        recipe = self.recipe
        return StableDiffusion(
            tokenizer=self.tokenizer, text=networks.text, vae=self.final_vae, unet=networks.unet,
            schedule=self.schedule, prediction=recipe.unet.prediction, defaults=recipe.defaults, name=recipe.name,
        )  # fmt: skip


@torch.no_grad()
def encoded(vae: AutoencoderKL, data: Dataset, side: int | None, settings: Settings) -> dict[str, Tensor]:
    """Mean and standard deviation of the posterior of every picture, in the precision of the settings."""
    log.info("encodes %d pictures", len(data))
    parts = []
    with autocast(vae, settings):
        for rows in torch.split(torch.arange(len(data)), ENCODE_BATCH):
            pixels = data.pixels(rows) if side is None else resized(data.pixels(rows), side)
            parts.append(vae.posterior(pixels.to(device_of(vae))))
    std = torch.cat([torch.exp(0.5 * p.logvar.float()) for p in parts])
    return {"mean": torch.cat([p.mean.float() for p in parts]), "std": std}
