"""The parts of one picture by Stable Diffusion 1.5: shapes, inputs, and the number of operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

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

WORKLOADS = ("text encoder", "U-Net step", "decoder")
GUIDANCE_SCALE = 7.5  # a step is one forward pass with a batch of two, and their combination


class Inputs(NamedTuple):
    """Token ids (2, n), text states (2, n, width), noisy latents (1, 4, h, w)."""

    ids: torch.Tensor
    states: torch.Tensor
    latents: torch.Tensor


@dataclass(frozen=True)
class Shapes:
    """A family of networks and a picture size."""

    family: Family
    size: int  # pixels

    @property
    def inputs(self) -> Inputs:
        """The same for all backends, from one seed."""
        key, text = torch.Generator().manual_seed(0), self.family.text
        side = self.size // self.family.vae.factor
        return Inputs(
            torch.randint(text.vocabulary, (2, text.length), generator=key),
            torch.randn(2, text.length, self.family.unet.context, generator=key),
            torch.randn(1, self.family.unet.channels, side, side, generator=key),
        )

    @cached_property
    def gflop(self) -> dict[str, float]:
        """Of each workload, counted on the meta device; a multiplication and its addition are two operations."""
        with torch.device("meta"):
            text, unet, vae = TextTower(self.family.text), UNet(self.family.unet), AutoencoderKL(self.family.vae)
            ids, states, latents = (x.to("meta") for x in self.inputs)
            runs: dict[str, Callable[[], object]] = {
                "text encoder": lambda: text(ids),
                "U-Net step": lambda: unet(latents.expand(2, -1, -1, -1), torch.zeros(2), states),
                "decoder": lambda: vae.decode(latents[:, : self.family.vae.latent_channels]),
            }
            gflop = {}
            for name in WORKLOADS:
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    runs[name]()
                gflop[name] = counter.get_total_flops() / 1e9
        return gflop


def sd15(size: int = 512) -> Shapes:
    """Stable Diffusion 1.5 at a picture size in pixels."""
    return Shapes(FAMILIES["sd1"], size)


def write_model(shapes: Shapes, folder: Path) -> None:
    """Writes a diffusers folder of those shapes with random weights in fp16, the dtype of published models."""
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
