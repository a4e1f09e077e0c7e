"""The stages of training from nothing: the network, its loss, and a sample sheet of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import prediction_named
from gradina.images import grid
from gradina.images.tensor import to_image
from gradina.models.clip_vision import CLIP
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.generate import generate
from gradina.request import Request
from gradina.training.data.dataset import Dataset, augment
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import IconScenes
from gradina.training.loop import Loss, device_of
from gradina.training.losses import (
    autoencoding,
    contrastive,
    denoising_loss,
    draw_sigmas,
    latent_prediction,
    name_classification,
    reconstruction,
    resized,
)
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.networks import LatentPredictor, TextToLatent
from gradina.training.pretrain.recipes import CLIPRecipe, DecoderPhase, ImageEncoderRecipe, UNetPhase, VAEPhase
from gradina.training.settings import Settings

COLUMNS = 8  # of sample sheets
SEARCHED = 320  # pictures
SEEDS = 4

Augmented = Callable[[Tensor, float, torch.Generator], Tensor]  # (rows, degrees, key) -> pictures


@dataclass(frozen=True)
class Stage:
    """A network in training: its settings, its loss, and what shows its progress."""

    network: nn.Module
    settings: Settings
    loss: Loss
    sample: Callable[[Any], Image.Image]  # of the averaged weights
    rates: Mapping[str, float] | None = None  # factors of the learning rate, by child of the network
    validation: Callable[[], float] | None = None


def stage(experiment: Experiment, name: str) -> Stage:
    """The stage of that name; those before it have to be finished."""
    return STAGES[experiment.stages[name].part](experiment, name)


def vae_stage(experiment: Experiment, name: str) -> Stage:
    """The autoencoder reconstructs pictures."""
    recipe, phase, previous = experiment.recipe.vae, experiment.stages[name].settings, experiment.previous(name)
    assert isinstance(phase, VAEPhase)
    factor, channels = recipe.network.factor, recipe.network.latent_channels

    def loss(vae: AutoencoderKL, k: int) -> Tensor:
        key = experiment.generator(name, k)
        rows = torch.randint(len(experiment.data), (phase.batch,), generator=key)
        pixels = cropped(experiment.data.pixels(rows), recipe.crop, key)
        height, width = (n // factor for n in pixels.shape[2:])
        noise = torch.randn(len(pixels), channels, height, width, generator=key)
        side = None
        if phase.resized and torch.rand(1, generator=key) < phase.resized:
            side = int(torch.randint(max(1, height // 3), height, (1,), generator=key))
        device = device_of(vae)
        return autoencoding(vae, pixels.to(device), noise.to(device), recipe.kl_weight, side)

    make = experiment.new_vae
    vae = experiment.finished(make, previous).requires_grad_() if previous else experiment.untrained(make, "vae")
    if phase.only == "decoder":
        freeze_encoder(vae)
    return Stage(vae, phase, loss, partial(reconstructed, experiment))


def cropped(pixels: Tensor, side: int | None, key: torch.Generator) -> Tensor:
    """A random square of each picture (b, 3, side, side), or the pictures as they are."""
    if side is None or side >= min(pixels.shape[2:]):
        return pixels
    tops, lefts = ((torch.rand(len(pixels), generator=key) * (n - side + 1)).long().tolist() for n in pixels.shape[2:])
    return torch.stack([p[:, y : y + side, x : x + side] for p, y, x in zip(pixels, tops, lefts, strict=True)])


def clip_stage(experiment: Experiment, name: str) -> Stage:
    """The contrastive pair matches captions and pictures."""
    recipe, data = experiment.recipe.clip, load_dataset(experiment.recipe, "pairs")

    network = experiment.untrained(experiment.new_clip, "clip")
    loss = contrastive_loss(
        experiment, name, data, recipe, lambda rows, degrees, key: augment(data.pixels(rows), degrees, key)
    )
    return Stage(network, experiment.stages[name].settings, loss, partial(retrieved, experiment))


def image_encoder_stage(experiment: Experiment, name: str) -> Stage:
    """The pair that is shipped with the model: its image tower is trained on, or a new one is.

    The text tower is the U-Net's, frozen except for its projection. Source: Zhai et al., "LiT: Zero-Shot Transfer with
    Locked-image text Tuning" (2111.07991), with the roles of the towers exchanged.
    """
    recipe = experiment.recipe.image_encoder
    assert recipe is not None
    data = load_dataset(experiment.recipe.with_image_encoder_data, "pairs")
    network = experiment.untrained(experiment.new_final_clip, "image_encoder")
    network.text.load_state_dict(experiment.text_to_latent.text.state_dict())
    network.logit_scale.data.copy_(experiment.clip.logit_scale)
    if recipe.network is None:
        network.vision.load_state_dict(experiment.clip.vision.state_dict())
    network.text.requires_grad_(False).get_parameter("projection.weight").requires_grad_()
    loss = contrastive_loss(experiment, name, data, recipe, data.augmented)
    return Stage(network, recipe.training, loss, partial(retrieved, experiment))


def contrastive_loss(
    experiment: Experiment, name: str, data: Dataset, section: CLIPRecipe | ImageEncoderRecipe, augmented: Augmented
) -> Loss:
    """The contrastive loss on batch k of pictures that are augmented and partly hidden as a recipe's section says."""
    recipe, batch = experiment.recipe.clip, experiment.stages[name].settings.batch
    names = experiment.tokenizer(data.phrases()[0])

    def loss(clip: CLIP, k: int) -> Tensor:
        key, device = experiment.generator(name, k), device_of(clip)
        rows = data.contrastive_rows(batch, key)
        captions, true = data.captions(rows, key)
        pixels, patches = augmented(rows, section.rotation, key), None
        if section.kept_patches < 1:
            count = clip.vision.config.positions
            order = torch.rand(batch, count, generator=key).argsort(1)
            patches = order[:, : round(section.kept_patches * count)].to(device)
        texts = clip.texts(experiment.tokenizer(captions).to(device))
        pictures, scale = clip.pictures(pixels.to(device), patches), clip.logit_scale.exp()
        error = contrastive(scale * texts @ pictures.T, true.to(device))
        if not recipe.classification:
            return error
        similarities = scale * pictures @ clip.texts(names.to(device)).T
        return error + name_classification(similarities, data.class_ids(rows).to(device))

    return loss


def text_encoder_stage(experiment: Experiment, name: str) -> Stage:
    """The text tower is pretrained by latent prediction, before a U-Net is conditioned on it."""
    settings, captioned = experiment.stages[name].settings, CaptionedLatents.of(experiment)
    predictor = experiment.untrained(experiment.new_latent_predictor, name)
    predictor.text.load_state_dict(experiment.clip.text.state_dict())

    def loss(predictor: LatentPredictor, k: int) -> Tensor:
        key, device = experiment.generator(name, k), device_of(predictor)
        rows, ids = captioned.draw(settings.batch, key)
        return latent_prediction(predictor, ids.to(device), captioned.mean[rows].to(device))

    return Stage(predictor, settings, loss, partial(predicted, experiment))


def unet_stage(experiment: Experiment, name: str) -> Stage:
    """The U-Net denoises latents, conditioned on captions; a phase may train the text tower along with it."""
    recipe, phase, previous = experiment.recipe.unet, experiment.stages[name].settings, experiment.previous(name)
    assert isinstance(phase, UNetPhase)
    if previous:
        networks = experiment.finished(experiment.new_text_to_latent, previous)
    else:
        unet = experiment.untrained(experiment.new_unet, "unet")
        networks = TextToLatent(copy.deepcopy(experiment.text), unet)
    networks.unet.requires_grad_()
    networks.text.requires_grad_(phase.text_rate > 0)
    captioned = CaptionedLatents.of(experiment, phase)
    schedule, prediction = experiment.schedule, prediction_named(recipe.prediction)

    def loss(networks: TextToLatent, k: int) -> Tensor:
        key, device = experiment.generator(name, k), device_of(networks)
        rows, ids = captioned.draw(phase.batch, key)
        latents = captioned.sample(rows, key)
        denoiser, cond = Denoiser(on_states(networks.unet), schedule, prediction), Cond(networks.text(ids.to(device)))
        return denoising_loss(denoiser, latents.to(device), cond, key, phase)

    sample = partial(generated, experiment, side=phase.pixels)
    return Stage(networks, phase, loss, sample, {"text": phase.text_rate})


@dataclass(frozen=True)
class CaptionedLatents:
    """What text tower and U-Net are trained on: the latents of pictures, and their captions as tokens."""

    experiment: Experiment
    data: Dataset
    rows: Tensor  # of the data, that are drawn
    mean: Tensor  # of the posterior of each picture (n, c, h, w)
    std: Tensor

    @classmethod
    def of(cls, experiment: Experiment, phase: UNetPhase | None = None) -> CaptionedLatents:
        """Those of a phase of the U-Net; None: of the data as they are."""
        if phase is None:
            return cls(experiment, experiment.data, torch.arange(len(experiment.data)), *experiment.latents())
        data = experiment.composed(phase.composition)
        rows = torch.arange(len(data))
        if isinstance(data, IconScenes):
            data = replace(data, default_style=phase.default_style)
            rows = data.rows_of_first(phase.classes) if phase.classes else rows
        return cls(experiment, data, rows, *experiment.latents(phase.pixels, phase.composition))

    def draw(self, count: int, key: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random rows (count,), and the tokens (count, length) of a caption for each.

        A share of the captions is "", which guidance needs.
        """
        rows = self.rows[torch.randint(len(self.rows), (count,), generator=key)]
        captions, _ = self.data.captions(rows, key)
        dropped = (torch.rand(count, generator=key) < self.experiment.recipe.unet.caption_dropout).tolist()
        kept = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        return rows, self.experiment.tokenizer(kept)

    def sample(self, rows: Tensor, key: torch.Generator) -> Tensor:
        """Latents of the pictures of `rows`, sampled from their posteriors."""
        return self.mean[rows] + self.std[rows] * torch.randn(len(rows), *self.mean.shape[1:], generator=key)


def decoder_stage(experiment: Experiment, name: str) -> Stage:
    """The decoder turns what the U-Net predicts at low noise levels into the clean pictures.

    It learns to correct what the U-Net leaves undone, at no cost when pictures are drawn. The encoder does not change.
    """
    phase, last = experiment.stages[name].settings, experiment.recipe.unet.training[-1]
    assert isinstance(phase, DecoderPhase)
    captioned, data = CaptionedLatents.of(experiment, last), experiment.composed(last.composition)
    networks, prediction = experiment.text_to_latent, prediction_named(experiment.recipe.unet.prediction)
    denoiser = Denoiser(on_states(networks.unet), experiment.schedule, prediction)

    def loss(vae: AutoencoderKL, k: int) -> Tensor:
        key, device = experiment.generator(name, k), device_of(vae)
        rows, ids = captioned.draw(phase.batch, key)
        latents = captioned.sample(rows, key)
        noise = torch.randn(latents.shape, generator=key)
        sigma = draw_sigmas(experiment.schedule, len(rows), key, phase)
        clean = (torch.rand(len(rows), generator=key) < phase.clean)[:, None, None, None]
        latents, noise, sigma = latents.to(device), noise.to(device), sigma.to(device)
        with torch.no_grad():
            cond = Cond(networks.text(ids.to(device)))
            predicted = denoiser(denoiser.noised(latents, noise, sigma), sigma, cond)
        pixels = data.pixels(rows) if last.pixels is None else resized(data.pixels(rows), last.pixels)
        return reconstruction(vae.decode(torch.where(clean.to(device), latents, predicted)), pixels.to(device))

    vae = experiment.finished(experiment.new_vae, experiment.phases("vae")[-1]).requires_grad_()
    vae.config = experiment.vae.config
    freeze_encoder(vae)
    return Stage(vae, phase, loss, partial(reconstructed, experiment))


def freeze_encoder(vae: AutoencoderKL) -> None:
    """Leaves the decoder alone trainable, so that latents stay what they are."""
    vae.encoder.requires_grad_(False)
    vae.quant.requires_grad_(False)


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
    key = experiment.generator("look")
    return experiment.data.pixels(torch.randint(len(experiment.data), (count,), generator=key))


def prompts(experiment: Experiment) -> tuple[str, ...]:
    """The recipe's prompts, or the first of its data."""
    return experiment.recipe.prompts or tuple(experiment.data.texts()[:10])


STAGES: dict[str, Callable[[Experiment, str], Stage]] = {
    "vae": vae_stage,
    "clip": clip_stage,
    "text_encoder": text_encoder_stage,
    "unet": unet_stage,
    "decoder": decoder_stage,
    "image_encoder": image_encoder_stage,
}
