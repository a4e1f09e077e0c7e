"""How well does each fine-tuning method teach the shipped model a thing that it has never seen?

    python evaluation/own.py [--model emoji] [--quick]
    python evaluation/own.py --pictures FOLDER

The thing: nesting dolls, in one style, on plain backgrounds; six pictures to train on, and others to compare with. For
each method: likeness to those others (mean cosine of CLIP's image embeddings, beside that of the untrained model),
obedience (the fraction of pictures with the background of the prompt), drift (PSNR in dB between pictures of other
things and those of the untrained model, with the same seeds), seconds of training. Prints a table, and writes
`evaluation/own.json` and the pictures of `docs/own/`; or writes the six pictures into a folder.
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
from gradina.images.tensor import to_image, to_pixels
from gradina.pipeline.generate import generate
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.metrics import psnr
from gradina.tasks.retrieval import embed_pixels, open_pair
from gradina.training.data.captioned_image import CaptionedImage
from gradina.training.data.icons import render_icons, vocabulary, with_article
from gradina.training.data.latents import Crop, LatentDataset, encode_pictures
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
TRAINING, COMPARISON = 6, 24  # pictures to train on, and to compare with
SEEDS = 4
UNRELATED = ("a red apple", "a penguin on a pink background", "a house in twemoji style", "an owl", "a rocket", "a cat")
ETA = 0.7  # weight of the target text in an edit
BACKGROUNDS = ("pink", "blue", "green", "yellow")
SETTINGS = {"batch": 4, "warmup": 0, "decay": 0.5, "caption_dropout": 0.0}


@dataclass(frozen=True)
class Finetuned:
    """A result: the model, the name of the thing in its prompts, seconds of training, and the last sample sheet."""

    model: StableDiffusion
    name: str
    seconds: float
    samples: Image.Image | None = None
    edit: tuple[str, float] | None = None  # of Imagic, which draws the thing alone


def dolls(size: int) -> IconScenes:
    """Pictures of the thing on plain backgrounds, with small variations of scale and position."""
    words, sets = vocabulary([THING]), {STYLE: npm_package(PACKAGE)}
    return IconScenes(
        render_icons([THING], sets, size, held_out=False), words, (STYLE,), TRAINING + COMPARISON, 0.0, seed=5
    )


def write_pictures(data: IconScenes, folder: Path) -> list[CaptionedImage]:
    """Writes the training pictures, named by their captions."""
    found = []
    for row in range(TRAINING):
        background = BACKGROUND_NAMES[int(data.plan["background"][row])]
        caption = f"nesting dolls on {with_article(background)} background"
        path = folder / f"{caption} ({row}).png"
        to_image(data.pixels(torch.tensor([row]))[0]).save(path)
        found.append(CaptionedImage(path, caption))
    return found


def run(method: methods.Method, config: FinetuneConfig, folder: Path, prompts: Sequence[str]) -> tuple[float, Path]:
    """Runs a method; the seconds that it took, and its result."""
    start = time.monotonic()
    running = finetune(method, config, folder, "mark", prompts, max(1, config.steps // 5))
    while True:
        try:
            next(running)
        except StopIteration as done:
            return time.monotonic() - start, done.value


def all_methods(
    steps: float, temporary: Path
) -> dict[str, Callable[[StableDiffusion, Sequence[CaptionedImage]], Finetuned]]:
    """The methods, with settings for a model of this size and a fraction `steps` of their training steps."""

    def data(model: StableDiffusion, pictures: Sequence[CaptionedImage], caption: str | None = None) -> LatentDataset:
        captioned = pictures if caption is None else [replace(picture, caption=caption) for picture in pictures]
        return encode_pictures(model, captioned, Crop(), model.defaults.width * model.defaults.height)

    def config_of(method: str, count: int, lr: float, **more: Any) -> FinetuneConfig:
        return config_for(method, **SETTINGS, steps=max(2, round(steps * count)), lr=lr, **more)

    def finetuning(rank: int | None) -> Callable[[StableDiffusion, Sequence[CaptionedImage]], Finetuned]:
        def train(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Finetuned:
            config = config_of("finetune", 400, 1e-3 if rank else 1e-4, rank=rank, text_rate=0.3)
            method = methods.finetuning(model, data(model, pictures), config)
            seconds, _ = run(method, config, temporary / f"finetune-{rank}", ["nesting dolls"])
            return Finetuned(method.model(method.trainable), "nesting dolls", seconds)

        return train

    def inversion(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Finetuned:
        config = config_of("textual_inversion", 800, 1e-2, vectors=2)
        method = methods.textual_inversion(model, data(model, pictures), "<dolls>", "toy", config)
        prompts = ("<dolls>", "<dolls> on a pink background", "a <dolls> and a cat")
        seconds, _ = run(method, config, temporary / "invert", prompts)
        with Image.open(temporary / "invert" / "samples.png") as image:
            return Finetuned(method.model(method.trainable), "<dolls>", seconds, image.copy())

    def dreambooth(prior: bool) -> Callable[[StableDiffusion, Sequence[CaptionedImage]], Finetuned]:
        def train(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Finetuned:
            config = config_of("dreambooth", 300, 1e-3, text_rate=0.3)
            class_data = None
            if prior:
                paths = methods.class_pictures(model, CLASS, 24, temporary / "class")
                class_data = data(model, [CaptionedImage(path, CLASS) for path in paths])
            method = methods.dreambooth(model, data(model, pictures, "a sks toy"), class_data, config)
            seconds, _ = run(method, config, temporary / f"dreambooth-{prior}", ["a sks toy"])
            return Finetuned(method.model(method.trainable), "a sks toy", seconds)

        return train

    def imagic(model: StableDiffusion, pictures: Sequence[CaptionedImage]) -> Finetuned:
        """From a single picture, as the method is meant."""
        one, prompt = data(model, pictures[:1]), "nesting dolls on a green background"
        first, second = config_of("imagic_embedding", 200, 2e-3), config_of("imagic_finetune", 300, 1e-3)
        before, states = run(methods.imagic_embedding(model, one, prompt, first), first, temporary / "1-text", [prompt])
        method = methods.imagic_finetune(model, one, read_states(states, model.text.config.width), second)
        seconds, edit = run(method, second, temporary / "2-picture", [prompt])
        return Finetuned(model, "nesting dolls", before + seconds, edit=(str(edit), ETA))

    return {
        "untrained": lambda model, _: Finetuned(model, "nesting dolls", 0.0),
        "LoRA": finetuning(8),
        "all weights": finetuning(None),
        "textual inversion": inversion,
        "DreamBooth, no prior": dreambooth(False),
        "DreamBooth": dreambooth(True),
        f"Imagic, one picture, eta {ETA}": imagic,
    }


def draw(model: StableDiffusion, prompts: Sequence[str], edit: tuple[str, float] | None = None) -> Tensor:
    """Pictures of prompts, (n, 3, h, w) in -1..1."""
    request = gradina.Request(prompt=tuple(prompts), images=SEEDS, seed=0, edit=edit)
    return torch.stack([to_pixels(picture.image) for picture in generate(model, request)])


def mean_cosine(one: Tensor, other: Tensor) -> float:
    """Mean cosine of all pairs of embeddings."""
    return float((F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).mean())


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, and write nothing")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the training pictures, and stop")
    options = parser.parse_args()
    size = read_recipe(ROOT / "recipes" / "emoji.toml").data.icons
    assert size is not None
    data = dolls(size.size)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        write_pictures(data, options.pictures)
        return
    model, pair = gradina.load(options.model, dtype="fp32"), open_pair(options.model)
    comparison = embed_pixels(pair, data.pixels(torch.arange(TRAINING, TRAINING + COMPARISON)))
    before = draw(model, UNRELATED)
    rows: dict[str, dict[str, float]] = {}
    columns: list[Tensor] = []
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        pictures = write_pictures(data, temporary)
        self_similarity = mean_cosine(embed_pixels(pair, data.pixels(torch.arange(TRAINING))), comparison)
        for method, train in all_methods(0.1 if options.quick else 1.0, temporary).items():
            result = train(model, pictures)
            prompts = [f"{result.name} on a {background} background" for background in BACKGROUNDS]
            expected = torch.tensor([BACKGROUND_NAMES.index(g) for g in BACKGROUNDS for _ in range(SEEDS)])
            plain, placed = (draw(result.model, p, result.edit) for p in ([result.name], prompts))
            after = draw(result.model, UNRELATED)
            drift = [psnr(a, b, 2) for a, b in zip(after, before, strict=True)]
            rows[method] = {
                "likeness": round(mean_cosine(embed_pixels(pair, torch.cat([plain, placed])), comparison), 3),
                "obedience": round(float((background_of(placed) == expected).float().mean()), 3),
                "other things, dB": round(sum(min(x, 99.0) for x in drift) / len(drift), 1),
                "seconds": round(result.seconds),
            }
            print(method, rows[method], flush=True)
            columns.append(torch.cat([plain[:2], placed[::SEEDS], after[::SEEDS][:4]]))
            if result.samples is not None and not options.quick:
                PAGE.mkdir(parents=True, exist_ok=True)
                save_page(result.samples, "inversion")
    figures = {
        "the real pictures among themselves": {"likeness": round(self_similarity, 3)},
        **rows,
        "torch": torch.__version__,
    }
    print(json.dumps(figures, indent=2))
    if options.quick:
        return
    (ROOT / "evaluation" / "own.json").write_text(json.dumps(figures, indent=2) + "\n")
    pixels = torch.cat([data.pixels(torch.arange(TRAINING)), *columns])
    count = len(columns[0])
    shown = [to_image(p) for p in pixels]
    blank = [Image.new("RGB", shown[0].size, "white")] * (count - TRAINING)
    page = grid.grid([*shown[:TRAINING], *blank, *shown[TRAINING:]], columns=count, row_labels=("the pictures", *rows))
    save_page(page, "methods")


def save_page(page: Image.Image, name: str) -> None:
    """Writes a picture of the page in 256 colours, a quarter of the bytes."""
    page.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(PAGE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
