"""What the stages of a run share: the recipe, its data, and the parts that are finished; each made once, when asked."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradina.diffusion.schedule import Schedule
from gradina.models.clip import CLIP, TextTower, vision_tower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.model import StableDiffusion
from gradina.training.checkpoint import load_average, once
from gradina.training.data.dataset import Dataset, generator
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import IconScenes
from gradina.training.losses import resized
from gradina.training.pretrain.latent_predictor import Reader
from gradina.training.pretrain.recipes import Planned, Recipe, plan
from gradina.weights.formats.clip import Pair

log = logging.getLogger(__name__)

AT_ONCE = 8  # pictures: more at once would not stay near the core, and take twice as long
LOOKED_AT = 1000  # captions, for those that are too long
MADE_FROM = {  # the sections of the recipe that count for a part
    "vae": ("vae",),
    "clip": ("clip",),
    "words": ("vae", "clip", "words"),
    "unet": ("vae", "clip", "words", "unet"),
    "vision": ("vae", "clip", "words", "unet", "vision"),
}

Network = TypeVar("Network", bound=nn.Module)


class Painter(nn.Module):
    """What draws from words: the text tower, and the U-Net that reads what it says."""

    def __init__(self, text: TextTower, unet: UNet) -> None:
        super().__init__()
        self.text, self.unet = text, unet


@dataclass(frozen=True)
class Workshop:
    """A recipe and the folder in which its parts are made."""

    recipe: Recipe
    folder: Path

    @cached_property
    def stages(self) -> dict[str, Planned]:
        """The stages of the recipe, by name, in their order."""
        return plan(self.recipe)

    def phases(self, part: str) -> list[str]:
        """The names of the stages in which a part learns, in their order; the last one is what it becomes."""
        return [name for name, stage in self.stages.items() if stage.part == part]

    def before(self, stage: str) -> str | None:
        """The phase that a stage goes on from; None for the first of its part."""
        planned = self.stages[stage]
        return self.phases(planned.part)[planned.phase - 1] if planned.phase else None

    def state(self, stage: str) -> Path:
        """Where all that changes while a stage learns is kept."""
        return self.folder / stage / "state.safetensors"

    def weights(self, stage: str) -> Path:
        """Where what a finished stage has learnt is kept: its averaged weights, in half precision."""
        return self.folder / stage / "weights.safetensors"

    def mark(self, stage: str) -> str:
        """What a stage is made from, as a hash; prompts, names and later phases do not count."""
        recipe = asdict(self.recipe, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})
        planned = self.stages[stage]
        sections = ("seed", "data", "vocabulary", "schedule", *MADE_FROM[planned.part])
        kept = {name: recipe[name] for name in sections if name in recipe}
        if planned.part in ("vae", "unet"):
            phases = recipe[planned.part]["training"][: planned.phase + 1]
            kept[planned.part] = recipe[planned.part] | {"training": phases}
        if planned.part in ("words", "unet", "vision"):
            encoding = [phase for phase in recipe["vae"]["training"] if phase.get("only") != "decoder"]
            kept["vae"] = recipe["vae"] | {"training": encoding}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def data(self) -> Dataset:
        """What there is to learn from."""
        return load_dataset(self.recipe)

    @property
    def wider(self) -> Recipe:
        """The recipe, with the further packages that the pair learns from in the end."""
        data, own = self.recipe.data, self.recipe.vision
        if own is None:
            return self.recipe
        icons = data.icons and replace(data.icons, more_styles=data.icons.more_styles + own.styles)
        packages, folders = data.packages + own.packages, data.folders + own.folders
        return replace(self.recipe, data=replace(data, packages=packages, folders=folders, icons=icons))

    def rows(self, key: torch.Generator, count: int) -> Tensor:
        """Examples drawn evenly."""
        return torch.randint(len(self.data), (count,), generator=key)

    def build(self, make: Callable[[], Network], part: str) -> Network:
        """A network with weights that depend on the recipe's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(self.recipe.seed, part).initial_seed())
            return make()

    def learnt(self, make: Callable[[], Network], stage: str) -> Network:
        """A network as a finished stage has left it."""
        return load_average(self.build(make, stage), self.weights(stage))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own vocabulary, learnt from all captions; a warning says how many of them it cuts."""
        words = self.recipe.vocabulary
        made = Tokenizer.train(self.data.texts(), words.size, words.length)
        some = torch.arange(min(len(self.data), LOOKED_AT))
        captions = self.data.captions(some, generator(self.recipe.seed, "captions"))[0]
        cut = [caption for caption in captions if made.chunk_count(caption) > 1]
        if cut:
            log.warning(
                "vocabulary.length: %d of %d captions have more than the %d tokens that are read; their ends are not "
                "learnt (the first: %r); give a greater length",
                len(cut), len(captions), words.length - 2, shorten(cut[0], 80),
            )  # fmt: skip
        return made

    @cached_property
    def schedule(self) -> Schedule:
        """The noise levels that the U-Net learns, and how others are told to space them: as the model's defaults do."""
        law, spacing = self.recipe.schedule, self.recipe.defaults.schedule
        spacing = spacing if spacing in ("leading", "linspace", "trailing") else "leading"
        return Schedule.from_betas(law.betas(), law=law, timestep_spacing=spacing)

    def new_vae(self) -> AutoencoderKL:
        """An autoencoder of the recipe's shape."""
        return AutoencoderKL(self.recipe.vae.network)

    def new_clip(self) -> CLIP:
        """A pair of towers of the recipe's shape; its vocabulary is the tokenizer's."""
        tokens, text = self.tokenizer, self.recipe.clip.text
        text = replace(text, vocabulary=len(tokens), length=tokens.length, eos=tokens.eos)
        return CLIP(text, self.recipe.clip.vision)

    def new_pair(self) -> CLIP:
        """A pair of towers of the shape in which it goes with the model."""
        pair, own = self.new_clip(), self.recipe.vision
        if own is not None and own.network is not None:
            pair.vision = vision_tower(own.network)
        return pair

    def new_reader(self) -> Reader:
        """A text tower with a stand-in for the U-Net, for latents of whole pictures."""
        words, (_, channels, high, wide) = self.recipe.words, self.latents()[0].shape
        assert words is not None
        return Reader(self.new_clip().text, (channels, high, wide), words.width, words.layers, words.heads)

    def new_unet(self) -> UNet:
        """A U-Net of the recipe's shape; it reads what the text tower says."""
        return UNet(replace(self.recipe.unet.network, context=self.recipe.clip.text.width))

    def new_painter(self) -> Painter:
        """A text tower and a U-Net of the recipe's shapes."""
        return Painter(self.new_clip().text, self.new_unet())

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder of the first stage, its scale set so that latents have a standard deviation of 1."""
        vae = self.learnt(self.new_vae, self.phases("vae")[-1])
        mean, _ = self._latents(vae)
        vae.config = replace(vae.config, scale=round(1 / mean.std().item(), 5))
        return vae

    @cached_property
    def clip(self) -> CLIP:
        """The pair of the second stage."""
        return self.learnt(self.new_clip, "clip")

    @cached_property
    def text(self) -> TextTower:
        """What the U-Net begins to read: the pair's text tower, taught on by the stand-in if the recipe asks for it."""
        return self.learnt(self.new_reader, "words").text if self.recipe.words else self.clip.text

    @property
    def painter(self) -> Painter:
        """What draws, as it is in the end."""
        return self.learnt(self.new_painter, self.phases("unet")[-1])

    @property
    def pair(self) -> Pair:
        """The pair as it is in the end, with all that it needs elsewhere: it looks at pictures in -1..1."""
        (last,) = self.phases("vision") or self.phases("clip")
        clip = self.learnt(self.new_pair, last)
        return Pair(clip=clip, tokenizer=self.tokenizer, phrases=self.data.phrases(), name=self.recipe.name)

    def latents(self, side: int | None = None, placed: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of every picture, each (n, c, h, w), of pictures `side` wide.

        `placed` says how large and where things are in pictures that are composed, if otherwise than in the data.
        """
        mean, std = self._latents(self.vae, side, placed or {})
        return mean * self.vae.config.scale, std * self.vae.config.scale

    def _latents(
        self, vae: AutoencoderKL, side: int | None = None, placed: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same as the encoder says it, kept in a file."""
        named = [str(side)] * (side is not None) + [f"{name}-{value:g}" for name, value in (placed or {}).items()]
        path = self.folder / f"{'-'.join(['latents', *named])}.safetensors"
        data = self.data
        if placed:
            assert isinstance(data, IconScenes)
            data = replace(data, **placed)  # the same things in the same order, on the same grounds
        learning = zip(self.phases("vae"), self.recipe.vae.training, strict=True)
        last = [name for name, phase in learning if phase.only != "decoder"][-1]  # what decides the latents
        half = self.stages[last].settings.precision == "bfloat16"
        said = once(path, self.mark(last), lambda: encoded(vae, data, side, half))
        return said["mean"], said["std"]

    def model(self, painter: Painter) -> StableDiffusion:
        """The whole model around what draws."""
        return StableDiffusion(
            tokenizer=self.tokenizer,
            text=painter.text,
            vae=self.vae,
            unet=painter.unet,
            schedule=self.schedule,
            prediction=self.recipe.unet.prediction,
            defaults=self.recipe.defaults,
            name=self.recipe.name,
        )


@torch.no_grad()
def encoded(vae: AutoencoderKL, data: Dataset, side: int | None, half: bool) -> dict[str, Tensor]:
    """What an encoder says of every picture: mean and deviation."""
    log.info("encodes %d pictures", len(data))
    batches = torch.split(torch.arange(len(data)), AT_ONCE)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        parts = [vae.posterior(smaller(data.pixels(rows), side)) for rows in batches]
    std = torch.cat([torch.exp(0.5 * p.logvar.float()) for p in parts])
    return {"mean": torch.cat([p.mean.float() for p in parts]), "std": std}


def smaller(pixels: Tensor, side: int | None) -> Tensor:
    """Pictures (b, 3, h, w) made `side` pixels wide and high, or as they are."""
    return pixels if side is None else resized(pixels, side)
