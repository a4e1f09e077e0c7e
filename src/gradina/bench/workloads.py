"""What is raced over: the parts of one picture by Stable Diffusion 1.5, and how many multiplications each asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from gradina.diffusion.schedule import sd_schedule
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights.components import Components
from gradina.weights.families import FAMILIES, Family
from gradina.weights.formats.diffusers import write_folder

WORKS = ("text encoder", "U-Net step", "decoder")
SCALE = 7.5  # of guidance: a step is one pass for a batch of two, and their combination


@dataclass(frozen=True)
class Inputs:
    """The same for everyone: token ids (2, n), text states (2, n, width), noisy latents (1, 4, h, w)."""

    ids: torch.Tensor
    states: torch.Tensor
    latents: torch.Tensor


@dataclass(frozen=True)
class Shapes:
    """Of which networks, for which size of picture."""

    family: Family
    size: int  # pixels

    @property
    def inputs(self) -> Inputs:
        """Drawn from one seed."""
        key, text = torch.Generator().manual_seed(0), self.family.text
        side = self.size // self.family.vae.factor
        return Inputs(
            torch.randint(text.vocabulary, (2, text.length), generator=key),
            torch.randn(2, text.length, self.family.unet.context, generator=key),
            torch.randn(1, self.family.unet.channels, side, side, generator=key),
        )

    @cached_property
    def gflop(self) -> dict[str, float]:
        """Of each work, counted on networks without numbers; a multiplication and its addition are two."""
        with torch.device("meta"):
            text, unet, vae = TextTower(self.family.text), UNet(self.family.unet), AutoencoderKL(self.family.vae)
            given = self.inputs
            ids, states, latents = (x.to("meta") for x in (given.ids, given.states, given.latents))
            works: dict[str, Callable[[], object]] = {
                "text encoder": lambda: text(ids),
                "U-Net step": lambda: unet(latents.expand(2, -1, -1, -1), torch.zeros(2), states),
                "decoder": lambda: vae.decode(latents[:, : self.family.vae.latent_channels]),
            }
            counted = {}
            for name in WORKS:
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    works[name]()
                counted[name] = counter.get_total_flops() / 1e9
        return counted


def sd15(size: int = 512) -> Shapes:
    """Stable Diffusion 1.5."""
    return Shapes(FAMILIES["sd1"], size)


def write_model(shapes: Shapes, folder: Path) -> None:
    """A model of those shapes with random weights, in half precision, as published ones are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = Components(
            tokenizer=Tokenizer.clip(pad=shapes.family.pad),
            text=TextTower(shapes.family.text),
            vae=AutoencoderKL(shapes.family.vae),
            unet=UNet(shapes.family.unet),
            schedule=sd_schedule(),
            prediction=shapes.family.prediction,
            defaults=Defaults(width=shapes.size, height=shapes.size),
            name="benchmark",
        )
    write_folder(parts, folder, torch.float16)
