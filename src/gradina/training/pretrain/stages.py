"""The stages of training from nothing, as rows: which part learns, what it minimises, and how to look at it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import prediction_named
from gradina.models.clip import CLIP
from gradina.models.vae import AutoencoderKL
from gradina.training.data.dataset import Dataset, augment, generator
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import IconScenes
from gradina.training.loop import Loss, Settings
from gradina.training.losses import autoencoding, contrastive, denoising, imagining, naming
from gradina.training.pretrain.experiment import Painter, Workshop
from gradina.training.pretrain.latent_predictor import Reader
from gradina.training.pretrain.recipes import UNetPhase, VAEPhase
from gradina.training.pretrain.samples import drawn, found_by_captions, imagined, through_latents


@dataclass(frozen=True)
class Stage:
    """One part of the model, how it learns, and a picture of how far it is, drawn with the averaged weights."""

    network: nn.Module
    settings: Settings
    loss: Loss
    look: Callable[[nn.Module], Image.Image]
    rates: Mapping[str, float] | None = None  # shares of the learning rate, of parts that have their own
    check: Callable[[], float] | None = None  # the loss on what is not learnt from


def stage(shop: Workshop, name: str) -> Stage:
    """The stage of that name; those before it have to be finished."""
    return STAGES[shop.stages[name].part](shop, name)


def vae_stage(shop: Workshop, name: str) -> Stage:
    """Pictures through the latents and back."""
    recipe, phase, before = shop.recipe.vae, shop.stages[name].settings, shop.before(name)
    assert isinstance(phase, VAEPhase)
    factor, channels = recipe.network.factor, recipe.network.latent_channels

    def loss(vae: nn.Module, k: int) -> Tensor:
        assert isinstance(vae, AutoencoderKL)
        key = generator(shop.recipe.seed, name, k)
        pixels = cropped(shop.data.pixels(shop.rows(key, phase.batch)), recipe.crop, key)
        whole = pixels.shape[2] // factor
        noise = torch.randn(len(pixels), channels, whole, pixels.shape[3] // factor, generator=key)
        side = None
        if phase.resized and torch.rand(1, generator=key) < phase.resized:
            side = int(torch.randint(max(1, whole // 3), whole, (1,), generator=key))
        return autoencoding(vae, pixels, noise, recipe.kl_weight, side)

    vae = shop.learnt(shop.new_vae, before).requires_grad_() if before else shop.build(shop.new_vae, "vae")
    if phase.only == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant.requires_grad_(False)
    return Stage(vae, phase, loss, partial(through_latents, shop))


def cropped(pixels: Tensor, side: int | None, key: torch.Generator) -> Tensor:
    """A random square of each picture (b, 3, side, side), or the pictures as they are."""
    if side is None or side >= min(pixels.shape[2:]):
        return pixels
    tops, lefts = ((torch.rand(len(pixels), generator=key) * (n - side + 1)).long().tolist() for n in pixels.shape[2:])
    return torch.stack([p[:, y : y + side, x : x + side] for p, y, x in zip(pixels, tops, lefts, strict=True)])


def clip_stage(shop: Workshop, name: str) -> Stage:
    """Captions and pictures find each other."""
    recipe, data = shop.recipe.clip, load_dataset(shop.recipe, "pairs")

    def seen(rows: Tensor, key: torch.Generator) -> Tensor:
        return augment(data.pixels(rows), recipe.turned, key)

    network, look = shop.build(shop.new_clip, "clip"), partial(found_by_captions, shop)
    return Stage(network, shop.stages[name].settings, told_apart(shop, name, data, seen, recipe.kept), look)


def vision_stage(shop: Workshop, name: str) -> Stage:
    """A pair that goes with the model: its image tower learns on, or a new one begins.

    Its words are those that the U-Net reads, and stay as they are; how they are compared with pictures follows.
    Source: Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning" (2111.07991), the other way round.
    """
    recipe = shop.recipe.vision
    assert recipe is not None
    data, network = load_dataset(shop.wider, "pairs"), shop.build(shop.new_pair, "vision")
    network.text.load_state_dict(shop.painter.text.state_dict())
    network.logit_scale.data.copy_(shop.clip.logit_scale)
    if recipe.network is None:
        network.vision.load_state_dict(shop.clip.vision.state_dict())
    network.text.requires_grad_(False).get_parameter("projection.weight").requires_grad_()

    def seen(rows: Tensor, key: torch.Generator) -> Tensor:
        return data.augmented(rows, recipe.turned, key)

    loss, look = told_apart(shop, name, data, seen, recipe.kept), partial(found_by_captions, shop)
    return Stage(network, recipe.training, loss, look)


def told_apart(
    shop: Workshop, name: str, data: Dataset, seen: Callable[[Tensor, torch.Generator], Tensor], kept: float
) -> Loss:
    """The contrastive loss on batch k, of pictures as they are `seen`, a share of their patches `kept`."""
    recipe, batch = shop.recipe.clip, shop.stages[name].settings.batch
    names = shop.tokenizer(data.phrases()[0])

    def loss(clip: nn.Module, k: int) -> Tensor:
        assert isinstance(clip, CLIP)
        key = generator(shop.recipe.seed, name, k)
        rows = data.contrastive_rows(batch, key)
        captions, true = data.captions(rows, key)
        pixels, some = seen(rows, key), None
        if kept < 1:
            places = clip.vision.config.positions
            some = torch.rand(batch, places, generator=key).argsort(1)[:, : round(kept * places)]
        texts, pictures = clip.texts(shop.tokenizer(captions)), clip.pictures(pixels, some)
        scale = clip.logit_scale.exp()
        apart = contrastive(scale * texts @ pictures.T, true)
        return apart + naming(scale * pictures @ clip.texts(names).T, data.class_ids(rows)) if recipe.naming else apart

    return loss


def words_stage(shop: Workshop, name: str) -> Stage:
    """The text tower of the pair learns what its words look like, before a U-Net reads them."""
    phase = shop.stages[name].settings
    reader, (mean, _) = shop.build(shop.new_reader, "words"), shop.latents()
    reader.text.load_state_dict(shop.clip.text.state_dict())

    def loss(reader: nn.Module, k: int) -> Tensor:
        assert isinstance(reader, Reader)
        key = generator(shop.recipe.seed, name, k)
        rows = shop.rows(key, phase.batch)
        return imagining(reader, shop.tokenizer(worded(shop, shop.data, rows, key)), mean[rows])

    return Stage(reader, phase, loss, partial(imagined, shop))


def worded(shop: Workshop, data: Dataset, rows: Tensor, key: torch.Generator) -> list[str]:
    """A caption for each picture, or, now and then, none: guidance needs to know what pictures are without words."""
    texts, _ = data.captions(rows, key)
    dropped = (torch.rand(len(rows), generator=key) < shop.recipe.unet.caption_dropout).tolist()
    return ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]


def unet_stage(shop: Workshop, name: str) -> Stage:
    """Noise is told from latents, with the caption as a hint; a later phase goes on from the one before.

    The text tower is that of the stages before; a phase may let it learn, too.
    """
    recipe, phase, before = shop.recipe.unet, shop.stages[name].settings, shop.before(name)
    assert isinstance(phase, UNetPhase)
    if before:
        painter = shop.learnt(shop.new_painter, before)
    else:
        painter = Painter(copy.deepcopy(shop.text), shop.build(shop.new_unet, "unet"))
    painter.unet.requires_grad_()
    painter.text.requires_grad_(phase.text_rate > 0)
    placed = {"smallest": phase.smallest, "places": phase.places}
    mean, std = shop.latents(phase.pixels, {name: value for name, value in placed.items() if value is not None})
    data, shown = shop.data, torch.arange(len(shop.data))
    if isinstance(data, IconScenes):
        data = replace(data, home=phase.home)
        shown = data.rows_of_first(phase.things) if phase.things else shown
    schedule, prediction = shop.schedule, prediction_named(recipe.prediction)

    def loss(painter: nn.Module, k: int) -> Tensor:
        assert isinstance(painter, Painter)
        key = generator(shop.recipe.seed, name, k)
        rows = shown[torch.randint(len(shown), (phase.batch,), generator=key)]
        cond = painter.text(shop.tokenizer(worded(shop, data, rows, key)))
        latents = mean[rows] + std[rows] * torch.randn(len(rows), *mean.shape[1:], generator=key)
        noise = torch.randn(latents.shape, generator=key)
        sigma = schedule.drawn(len(rows), key, phase.shift or 1.0)
        return denoising(Denoiser(on_states(painter.unet), schedule, prediction), latents, noise, sigma, Cond(cond))

    look = partial(drawn, shop, side=phase.pixels)
    return Stage(painter, phase, loss, look, {"text": phase.text_rate})


STAGES: dict[str, Callable[[Workshop, str], Stage]] = {
    "vae": vae_stage,
    "clip": clip_stage,
    "words": words_stage,
    "unet": unet_stage,
    "vision": vision_stage,
}
