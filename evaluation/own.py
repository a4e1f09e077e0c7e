"""What do the methods make of a thing that the shipped model has never seen? Each is taught it, and judged.

    python evaluation/own.py [--model emoji] [--quick]
    python evaluation/own.py --pictures FOLDER

The thing: nesting dolls, in one style, on plain grounds; six pictures to learn from, and others to compare with. For
each method: likeness to those others (cosine of CLIP's image embeddings; beside it, what the untrained model draws),
obedience (the share of pictures on the ground that the prompt asks for), drift (how far pictures of other things have
moved from what the untrained model draws with the same seeds, in dB), seconds of training. Prints a table, and writes
`evaluation/own.json` and the pictures of `docs/own/`. Or it writes the six pictures into a folder, to try things with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from classifiers import background_of
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import gradina
from gradina.images import grid
from gradina.pipeline.generate import generate
from gradina.pipeline.model import StableDiffusion, to_image, to_pixels
from gradina.tasks.metrics import psnr
from gradina.tasks.retrieval import embed_pixels, open_pair
from gradina.training.data.buckets import Crop
from gradina.training.data.captioned_image import CaptionedImage
from gradina.training.data.icons import render_icons, vocabulary, with_article
from gradina.training.data.latents import LatentDataset, encode_pictures
from gradina.training.data.sources import npm_package
from gradina.training.data.synthetic import BACKGROUND_NAMES, IconScenes
from gradina.training.finetune import methods
from gradina.training.finetune.config import FinetuneConfig, config_for
from gradina.training.finetune.run import finetune
from gradina.training.pretrain.recipes import read_recipe
from gradina.weights.formats.imagic import read_states

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "own"
PACKAGE, STYLE, THING, CLASS = "@iconify-json/fluent-emoji@1.2.7", "fluent-emoji", "nesting-dolls", "a toy"
SHOWN, OTHERS = 6, 24  # pictures to learn from, and to compare with
SEEDS = 4
UNRELATED = ("a red apple", "a penguin on a pink background", "a house in twemoji style", "an owl", "a rocket", "a cat")
ETA = 0.7  # share of the sentence in an edit
GROUNDS_ASKED = ("pink", "blue", "green", "yellow")
LEARNING = {"batch": 4, "warmup": 0, "decay": 0.5, "caption_dropout": 0.0}


@dataclass(frozen=True)
class Taught:
    """A method at its end: the model, what the thing is called there, seconds, and its sheet of samples."""

    model: StableDiffusion
    name: str
    seconds: float
    samples: Image.Image | None = None
    edit: tuple[str, float] | None = None  # with which the thing, and nothing else, is drawn


def dolls(size: int) -> IconScenes:
    """Pictures of the thing on plain grounds, a little larger or smaller, somewhere near the middle."""
    words, sets = vocabulary([THING]), {STYLE: npm_package(PACKAGE)}
    return IconScenes(render_icons([THING], sets, size, held_out=False), words, (STYLE,), SHOWN + OTHERS, 0.0, seed=5)


def captioned(data: IconScenes, folder: Path) -> list[CaptionedImage]:
    """The pictures to learn from, as files with captions, which are also their names."""
    found = []
    for row in range(SHOWN):
        ground = BACKGROUND_NAMES[int(data.plan["background"][row])]
        caption = f"nesting dolls on {with_article(ground)} background"
        path = folder / f"{caption} ({row}).png"
        to_image(data.pixels(torch.tensor([row]))[0]).save(path)
        found.append(CaptionedImage(path, caption))
    return found


def ran(method: methods.Method, config: FinetuneConfig, folder: Path, prompts: Sequence[str]) -> tuple[float, Path]:
    """Runs a method; the seconds that it took, and its result."""
    start = time.monotonic()
    running = finetune(method, config, folder, "mark", prompts, max(1, config.steps // 5))
    while True:
        try:
            next(running)
        except StopIteration as done:
            return time.monotonic() - start, done.value


def methods_of(steps: float, room: Path) -> dict[str, Callable[[StableDiffusion, Sequence[CaptionedImage]], Taught]]:
    """The methods, with settings for a model of this size; `steps` is a share of those that they are meant to take."""

    def data(model: StableDiffusion, pictures: Sequence[CaptionedImage], caption: str | None = None) -> LatentDataset:
        worded = pictures if caption is None else [replace(one, caption=caption) for one in pictures]
        return encode_pictures(model, worded, Crop(), model.defaults.width * model.defaults.height)

    def config_of(method: str, count: int, lr: float, **more: Any) -> FinetuneConfig:
        return config_for(method, **LEARNING, steps=max(2, round(steps * count)), lr=lr, **more)

    def finetuned(rank: int | None) -> Callable[[StableDiffusion, Sequence[CaptionedImage]], Taught]:
        def teach(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Taught:
            config = config_of("finetune", 400, 1e-3 if rank else 1e-4, rank=rank, text_rate=0.3)
            method = methods.finetuning(model, data(model, pictures), config)
            seconds, _ = ran(method, config, room / f"finetune-{rank}", ["nesting dolls"])
            return Taught(method.model(method.trainable), "nesting dolls", seconds)

        return teach

    def inverted(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Taught:
        config = config_of("textual_inversion", 800, 1e-2, vectors=2)
        method = methods.textual_inversion(model, data(model, pictures), "<dolls>", "toy", config)
        prompts = ("<dolls>", "<dolls> on a pink background", "a <dolls> and a cat")
        seconds, _ = ran(method, config, room / "invert", prompts)
        with Image.open(room / "invert" / "samples.png") as image:
            return Taught(method.model(method.trainable), "<dolls>", seconds, image.copy())

    def boothed(prior: bool) -> Callable[[StableDiffusion, Sequence[CaptionedImage]], Taught]:
        def teach(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Taught:
            config = config_of("dreambooth", 300, 1e-3, text_rate=0.3)
            others = None
            if prior:
                drawn = methods.class_pictures(model, CLASS, 24, room / "class")
                others = data(model, [CaptionedImage(path, CLASS) for path in drawn])
            method = methods.dreambooth(model, data(model, pictures, "a sks toy"), others, config)
            seconds, _ = ran(method, config, room / f"dreambooth-{prior}", ["a sks toy"])
            return Taught(method.model(method.trainable), "a sks toy", seconds)

        return teach

    def edited(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Taught:
        """From one picture alone: that is what the method is for."""
        one, wish = data(model, pictures[:1]), "nesting dolls on a green background"
        first, second = config_of("imagic_embedding", 200, 2e-3), config_of("imagic_finetune", 300, 1e-3)
        before, states = ran(methods.imagic_embedding(model, one, wish, first), first, room / "1-text", [wish])
        method = methods.imagic_finetune(model, one, read_states(states, model.text.config.width), second)
        seconds, edit = ran(method, second, room / "2-picture", [wish])
        return Taught(model, "nesting dolls", before + seconds, edit=(str(edit), ETA))

    return {
        "untrained": lambda model, _: Taught(model, "nesting dolls", 0.0),
        "LoRA": finetuned(8),
        "all weights": finetuned(None),
        "textual inversion": inverted,
        "DreamBooth, no prior": boothed(False),
        "DreamBooth": boothed(True),
        f"Imagic, one picture, eta {ETA}": edited,
    }


def drawn(model: StableDiffusion, prompts: Sequence[str], edit: tuple[str, float] | None = None) -> Tensor:
    """Pictures of prompts, (n, 3, h, w) in -1..1."""
    request = gradina.Request(prompt=tuple(prompts), images=SEEDS, seed=0, edit=edit)
    return torch.stack([to_pixels(picture.image) for picture in generate(model, request)])


def likeness(one: Tensor, other: Tensor) -> float:
    """Mean cosine of all pairs of embeddings."""
    return float((F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).mean())


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, and write nothing")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures to learn from, and stop")
    options = parser.parse_args()
    size = read_recipe(ROOT / "recipes" / "emoji.toml").data.icons
    assert size is not None
    data = dolls(size.size)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        captioned(data, options.pictures)
        return
    model, pair = gradina.load(options.model, dtype="fp32"), open_pair(options.model)
    others = embed_pixels(pair, data.pixels(torch.arange(SHOWN, SHOWN + OTHERS)))
    before = drawn(model, UNRELATED)
    rows: dict[str, dict[str, float]] = {}
    columns: list[Tensor] = []
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        pictures = captioned(data, room)
        itself = likeness(embed_pixels(pair, data.pixels(torch.arange(SHOWN))), others)
        for method, teach in methods_of(0.1 if options.quick else 1.0, room).items():
            taught = teach(model, pictures)
            prompts = [f"{taught.name} on a {ground} background" for ground in GROUNDS_ASKED]
            asked = torch.tensor([BACKGROUND_NAMES.index(g) for g in GROUNDS_ASKED for _ in range(SEEDS)])
            plain, placed = (drawn(taught.model, p, taught.edit) for p in ([taught.name], prompts))
            after = drawn(taught.model, UNRELATED)
            moved = [psnr(a, b, 2) for a, b in zip(after, before, strict=True)]
            rows[method] = {
                "likeness": round(likeness(embed_pixels(pair, torch.cat([plain, placed])), others), 3),
                "obedience": round(float((background_of(placed) == asked).float().mean()), 3),
                "other things, dB": round(sum(min(x, 99.0) for x in moved) / len(moved), 1),
                "seconds": round(taught.seconds),
            }
            print(method, rows[method], flush=True)
            columns.append(torch.cat([plain[:2], placed[::SEEDS], after[::SEEDS][:4]]))
            if taught.samples is not None and not options.quick:
                PAGE.mkdir(parents=True, exist_ok=True)
                kept(taught.samples, "inversion")
    figures = {"the real pictures among themselves": {"likeness": round(itself, 3)}, **rows, "torch": torch.__version__}
    print(json.dumps(figures, indent=2))
    if options.quick:
        return
    (ROOT / "evaluation" / "own.json").write_text(json.dumps(figures, indent=2) + "\n")
    whole = torch.cat([data.pixels(torch.arange(SHOWN)), *columns])
    count = len(columns[0])
    shown = [to_image(p) for p in whole]
    blank = [Image.new("RGB", shown[0].size, "white")] * (count - SHOWN)
    page = grid.grid([*shown[:SHOWN], *blank, *shown[SHOWN:]], columns=count, row_labels=("the pictures", *rows))
    kept(page, "methods")


def kept(page: Image.Image, name: str) -> None:
    """Writes a picture of the page, in 256 colours: a quarter of the bytes."""
    page.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(PAGE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
