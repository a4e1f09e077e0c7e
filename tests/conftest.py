"""What tests of several rooms share: whole models with Stable Diffusion's anatomy, tiny, and with random weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from gradina.diffusion.schedule import sd_schedule
from gradina.models.clip import TextConfig, TextTower
from gradina.models.clip_vision import CLIP, VisionConfig
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.pipeline.model import StableDiffusion
from gradina.request import Defaults
from gradina.runtime.prepack import prepack
from gradina.tasks.retrieval import preprocess
from gradina.weights.formats.clip import ContrastivePair

os.environ["GRADINA_DTYPE"] = "fp32"  # pictures are compared with the reference's exactly, on any processor
torch.set_num_threads(1)  # the tests run side by side, and sums over threads differ in their last bits

CAPTIONS = ("a handwritten seven", "the digit seven", "a red lighthouse at night", "a blue boat, oil on canvas")
FORMS = {"sd1": "eps", "sd2": "v", "inpainting": "eps"}


def _scaled(network: torch.nn.Module, **gains: float) -> None:
    """Some layers made louder: as they are initialised, the network would hardly listen to them."""
    with torch.no_grad():
        for name, gain in gains.items():
            for module, parameter in network.named_parameters():
                if name in module:
                    parameter.mul_(gain)


def make_model(form: str) -> StableDiffusion:
    """A model whose pictures are 64 x 64 and depend on everything that they should depend on."""
    sd2 = form == "sd2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Tokenizer.clip(pad=0) if sd2 else Tokenizer.train(CAPTIONS, 560)
        text = TextConfig(vocabulary=len(tokenizer), width=32, inner=64, layers=2, heads=2, eos=tokenizer.eos)
        unet = UNetConfig(widths=(32, 64), attention=(True, False), heads=(4, 4), blocks=1, context=32, size=8)
        unet = UNetConfig(**vars(unet) | {"channels": 9 if form == "inpainting" else 4, "linear": sd2})
        vae = VAEConfig(widths=(16, 32, 32, 32), blocks=1, groups=16)
        model = StableDiffusion(
            tokenizer=tokenizer,
            text=TextTower(TextConfig(**vars(text) | {"activation": "gelu" if sd2 else "quick_gelu"})),
            vae=AutoencoderKL(vae),
            unet=UNet(unet),
            schedule=sd_schedule(),
            prediction=FORMS[form],
            defaults=Defaults(steps=5, guidance_scale=3, sampler="ddim", schedule="leading", width=64, height=64),
            name="tiny",
        )
    _scaled(model.unet, cross_attn=2.0)
    _scaled(model.vae.decoder, conv_out=1.5)
    for network in (model.text, model.vae, model.unet):
        network.eval().requires_grad_(False)
    return model


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., StableDiffusion]:
    """`tiny_model("sd1")`, "sd2" or "inpainting": the same one for all tests, which leave it as it is."""
    made: dict[str, StableDiffusion] = {}
    return lambda form="sd1": made[form] if form in made else made.setdefault(form, make_model(form))


@pytest.fixture(scope="session")
def as_loaded() -> Callable[[StableDiffusion], StableDiffusion]:
    """`as_loaded(model)`: a copy whose networks are prepacked, as those that come from files are."""

    def copied(model: StableDiffusion) -> StableDiffusion:
        text, vae, unet = (prepack(copy.deepcopy(network)) for network in (model.text, model.vae, model.unet))
        return replace(model, text=text, vae=vae, unet=unet)

    return copied


@pytest.fixture(scope="session")
def init() -> Image.Image:
    """A picture to start from, 64 x 64, of coloured squares."""
    squares = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares.repeat(8, 0).repeat(8, 1))


@pytest.fixture(scope="session")
def mask() -> Image.Image:
    """White where `init` is drawn anew, along no edge of the latents' places; the grey around it counts as black."""
    values = np.full((64, 64), 127, np.uint8)
    values[13:43, 20:51] = 128
    return Image.fromarray(values)


COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 210), "yellow": (240, 220, 40)}


@pytest.fixture(scope="session")
def squares() -> dict[str, Image.Image]:
    """A square of each colour, 24 x 24, on white."""
    pictures = {}
    for name, colour in COLOURS.items():
        pictures[name] = Image.new("RGB", (24, 24), "white")
        pictures[name].paste(colour, (5, 5, 19, 19))
    return pictures


@pytest.fixture(scope="session")
def pair(squares: dict[str, Image.Image]) -> ContrastivePair:
    """A contrastive pair that has learnt to tell the squares by their colours."""
    tokenizer = Tokenizer.train([f"a {name} square on white" for name in COLOURS] * 2, 560, length=10)
    text = TextConfig(vocabulary=len(tokenizer), length=10, width=32, inner=64, layers=1, heads=2, eos=tokenizer.eos)
    vision = VisionConfig(size=16, patch=8, width=32, inner=64, layers=1, heads=2, projection=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ContrastivePair(
            clip=CLIP(TextConfig(**vars(text) | {"projection": 16}), vision),
            tokenizer=tokenizer,
            phrases=(("a red", "a green", "a blue", "a yellow"), ("square",), ("", "on white")),
            name="colours",
        )
        _learn(made, [f"a {name}" for name in COLOURS], torch.stack([preprocess(made, p) for p in squares.values()]))
    return made


def _learn(pair: ContrastivePair, beginnings: list[str], pixels: torch.Tensor) -> None:
    """Captions and pictures find each other, both ways."""
    rows, optimizer = torch.arange(len(pixels)), torch.optim.AdamW(pair.clip.parameters(), lr=2e-3)
    for step in range(120):
        ending = ("", " square", " square on white")[step % 3]
        logits = pair.clip(pair.tokenizer([begin + ending for begin in beginnings]), pixels)
        loss = F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pair.clip.eval().requires_grad_(False)
