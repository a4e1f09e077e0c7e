"""The components of a model, as they are read from a checkpoint of whatever layout."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.schedule import Schedule
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights.safetensors import model_hash

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Components:
    """The networks of a model, its tokenizer and the noise levels that it was trained with."""

    tokenizer: Tokenizer
    text: TextTower
    vae: AutoencoderKL
    unet: UNet
    schedule: Schedule
    prediction: str  # of the U-Net: eps, v or x0
    defaults: Defaults = field(default_factory=Defaults)
    name: str = ""
    card: str = ""  # its README.md, which goes with it wherever it is saved
    source: str = ""  # the argument of load(), by which it is found again
    files: tuple[Path, ...] = ()  # of weights, as they were read
    vae_source: str = ""  # the argument of load() for another autoencoder than the model's own
    vae_files: tuple[Path, ...] = ()  # of that one; `files` and `hash` stay those of the model
    clip: Path | None = None  # the folder of the contrastive pair that goes with it; see clip.read_pair

    @cached_property
    def hash(self) -> str:
        """`model_hash` of the files, or "" for a model without files; computed when it is first asked for."""
        return model_hash(self.files) if self.files else ""

    @cached_property
    def vae_hash(self) -> str:
        """`model_hash` of the files of another autoencoder than the model's own, or ""."""
        return model_hash(self.vae_files) if self.vae_files else ""

    @property
    def about(self) -> dict[str, str]:
        """What is recorded in a picture's metadata: name, hash, the source if that is not the name, and the VAE's."""
        source = self.source if self.source != self.name else ""
        known = {"name": self.name, "hash": self.hash, "source": source}
        known |= {"vae": self.vae_source, "vae_hash": self.vae_hash}
        return {key: value for key, value in known.items() if value}


def checked_components(components: Components, path: Path) -> Components:
    """The components, texts cut to the text tower's length. Raises WeightsError for those of different models."""
    unet, vae, text, tokenizer = (getattr(components, name) for name in ("unet", "vae", "text", "tokenizer"))
    channels = unet.config.out_channels, vae.config.latent_channels
    for what, wanted, other, got in (
        ("the U-Net reads text states of width", unet.config.context, "its text tower gives", text.config.width),
        ("the U-Net's latents have channels:", channels[0], "its autoencoder's", channels[1]),
    ):
        if wanted != got:
            raise WeightsError(f"{path}: {what} {wanted}, {other} {got}; they are of different models")
    vocabulary, length = text.config.vocabulary, text.config.length
    largest = max(tokenizer.bos, tokenizer.eos, tokenizer.pad)
    if largest >= vocabulary:
        raise WeightsError(
            f"{path}: its tokenizer begins, ends and pads texts with ids up to {largest}, its text tower has "
            f"{vocabulary} tokens; they are of different models"
        )
    if len(tokenizer) > vocabulary:
        log.warning(
            "%s: its tokenizer has %d tokens, its text tower %d; prompts with the others cannot be drawn",
            path, len(tokenizer), vocabulary,
        )  # fmt: skip
    if tokenizer.length <= length:
        return components
    log.warning(
        "%s: its tokenizer makes texts of %d tokens, its text tower has %d positions; texts are cut to %d tokens",
        path, tokenizer.length, length, length,
    )  # fmt: skip
    return replace(components, tokenizer=tokenizer.with_length(length))


def resolve_prediction(path: Path, override: str | None, stated: str | None) -> str:
    """eps, v or x0: the override, else what the model states, else eps; warns where the two contradict."""
    prediction = prediction_named(override or stated or "eps").name
    if stated and prediction != stated:
        log.warning("%s: states that it predicts %s; drawing as if it were %s, as asked", path, stated, prediction)
    return prediction
