"""What a checkpoint holds, whatever its layout: the parts of a model, before anything is done with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gradina.diffusion.schedule import Schedule
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights.store import model_hash


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
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
    clip: Path | None = None  # the folder of the contrastive pair that goes with it; see pairs.read_pair

    @cached_property
    def hash(self) -> str:
        """`model_hash` of the files, or "" for a model that has none yet; computed when it is first asked for."""
        return model_hash(self.files) if self.files else ""

    @property
    def about(self) -> dict[str, str]:
        """What a picture's file says of the model that drew it: name, hash, and its source where that is no name."""
        said = {"name": self.name, "hash": self.hash, "source": self.source if self.source != self.name else ""}
        return {key: value for key, value in said.items() if value}
