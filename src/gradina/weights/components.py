"""What a checkpoint holds, whatever its layout: the parts of a model, before anything is done with them."""

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
    """The networks of a model, the vocabulary and the noise levels they were trained with."""

    tokenizer: Tokenizer
    text: TextTower
    vae: AutoencoderKL
    unet: UNet
    schedule: Schedule
    prediction: str  # what the U-Net says: eps, v or x0
    defaults: Defaults = field(default_factory=Defaults)
    name: str = ""
    card: str = ""  # its README.md, which goes with it wherever it is saved
    source: str = ""  # what load() was given, by which it finds the model again
    files: tuple[Path, ...] = ()  # of weights, as they were read
    vae_source: str = ""  # what load() was given as an autoencoder in place of the model's own
    vae_files: tuple[Path, ...] = ()  # of that one; `files` and `hash` stay those of the model
    clip: Path | None = None  # the folder of the contrastive pair that goes with it; see pairs.read_pair

    @cached_property
    def hash(self) -> str:
        """`model_hash` of the files, or "" for a model that has none yet; computed when it is first asked for."""
        return model_hash(self.files) if self.files else ""

    @cached_property
    def vae_hash(self) -> str:
        """`model_hash` of the files of an autoencoder in place of the model's own, or ""."""
        return model_hash(self.vae_files) if self.vae_files else ""

    @property
    def about(self) -> dict[str, str]:
        """What a picture's file says of the model that drew it: name, hash, and its source where that is no name."""
        said = {"name": self.name, "hash": self.hash, "source": self.source if self.source != self.name else ""}
        said |= {"vae": self.vae_source, "vae_hash": self.vae_hash}
        return {key: value for key, value in said.items() if value}


def fitting(parts: Components, path: Path) -> Components:
    """The parts that were read of a model, if they fit together; the tokenizer's texts are as long as the tower reads.

    Raises WeightsError, naming both numbers, where they do not.
    """
    unet, text, tokenizer = parts.unet.config, parts.text.config, parts.tokenizer
    for what, wanted, other, got in (
        ("the U-Net reads text states of width", unet.context, "its text tower gives", text.width),
        (
            "the U-Net's latents have channels:",
            unet.out_channels,
            "its autoencoder's",
            parts.vae.config.latent_channels,
        ),
    ):
        if wanted != got:
            raise WeightsError(f"{path}: {what} {wanted}, {other} {got}; the parts are of different models")
    largest = max(tokenizer.bos, tokenizer.eos, tokenizer.pad)
    if largest >= text.vocabulary:
        raise WeightsError(
            f"{path}: its tokenizer begins, ends and fills texts with ids up to {largest}, its text tower knows "
            f"{text.vocabulary} tokens; the parts are of different models"
        )
    if len(tokenizer) > text.vocabulary:
        log.warning(
            "%s: its tokenizer has %d tokens, its text tower %d; prompts with the others cannot be drawn",
            path, len(tokenizer), text.vocabulary,
        )  # fmt: skip
    if tokenizer.length <= text.length:
        return parts
    log.warning(
        "%s: its tokenizer makes texts of %d tokens, its text tower has places for %d; %d are taken",
        path, tokenizer.length, text.length, text.length,
    )  # fmt: skip
    return replace(parts, tokenizer=tokenizer.of_length(text.length))


def predicted(path: Path, asked: str | None, said: str | None) -> str:
    """eps, v or x0: what was asked for, else what the model says, else eps; logs where the two contradict."""
    chosen = prediction_named(asked or said or "eps").name
    if said and chosen != said:
        log.warning("%s: says of itself that it predicts %s; drawing as if it were %s, as asked", path, said, chosen)
    return chosen
