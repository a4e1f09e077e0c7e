"""What do the shortcuts cost? The same pictures with and without each, classified, timed and compared.

    python evaluation/shortcuts.py [--model emoji] [--pictures 160] [--quick | --times]

For each: seconds for one picture (median, interleaved), PSNR in dB to the exact picture of the same seed, things
recognised by the classifier of `evaluation/emoji.py`, and CLIP score: the mean cosine of the picture and its prompt, by
the model's own pair. Fewer steps without a shortcut are what each has to beat. Prints a table, and writes
`evaluation/shortcuts.json` and `docs/shortcuts.png`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from classifiers import SEED, predicted
from measurements import Evaluation, fraction, open_evaluation, prompts_for
from torch import Tensor

import gradina
from gradina.bench.timing import medians
from gradina.images import grid
from gradina.images.tensor import to_image
from gradina.pipeline.model import StableDiffusion
from gradina.tasks import retrieval
from gradina.tasks.metrics import psnr
from gradina.training.data.dataset import generator
from gradina.training.pretrain.recipes import read_recipe

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "evaluation" / "shortcuts.json"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "reuse 2": {"reuse": 2},
    "reuse 3": {"reuse": 3},
    "guidance at sigma 0.3 to 6": {"guidance_interval": (0.3, 6.0)},
    "both": {"guidance_interval": (0.3, 6.0), "reuse": 2},
    "14 steps": {"steps": 14},
    "10 steps": {"steps": 10},
    "7 steps": {"steps": 7},
}
ROUNDS = 9  # pictures per variant, interleaved


def main() -> None:
    """Draws, classifies, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--pictures", type=int, default=160, help="per variant (default: 160)")
    parser.add_argument(
        "--quick", action="store_true", help="train the classifiers for a minute only, and write nothing"
    )
    parser.add_argument("--times", action="store_true", help="only measure the times again")
    options = parser.parse_args()
    if options.times:
        write_times(options.model)
        return
    recipe = read_recipe(ROOT / "recipes" / "emoji.toml")
    evaluation = open_evaluation(gradina.load(options.model), recipe, 0.1 if options.quick else 1.0)
    report: dict[str, Any] = {
        "pictures": options.pictures,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    rows, picture = compare(evaluation, options.pictures)
    seconds = time_variants(evaluation.model)
    report["ways"] = {variant: {"seconds for one picture": seconds[variant]} | row for variant, row in rows.items()}
    print(json.dumps(report, indent=2))
    if not options.quick:
        REPORT.write_text(json.dumps(report, indent=2) + "\n")
        picture.save(ROOT / "docs" / "shortcuts.png")


def compare(evaluation: Evaluation, count: int) -> tuple[dict[str, dict[str, float]], Any]:
    """PSNR, things recognised and CLIP score of each variant, and a row of pictures of each."""
    key = generator(SEED, "shortcuts")
    icons = torch.randperm(len(evaluation.trained.icons), generator=key)[:count]
    prompts, _ = prompts_for(evaluation.trained, icons, key)
    things, pair = evaluation.trained.icons.things[icons], retrieval.open_pair(evaluation.model)
    words = retrieval.embed_texts(pair, prompts)
    rows: dict[str, dict[str, float]] = {}
    exact, shown = None, []
    for variant, fields in VARIANTS.items():
        pixels = evaluation.draw(prompts, **fields)
        exact = pixels if exact is None else exact
        pictures = [to_image(p) for p in pixels]
        shown += pictures[:8]
        rows[variant] = {
            **({"likeness, dB": round(median_psnr(pixels, exact), 1)} if fields else {}),
            "things recognised": round(fraction(predicted(evaluation.things, pixels) == things), 4),
            "CLIP score": round(float((retrieval.embed_pictures(pair, pictures) * words).sum(1).mean()), 4),
        }
    return rows, grid.grid(shown, columns=8, row_labels=list(VARIANTS))


def median_psnr(pixels: Tensor, exact: Tensor) -> float:
    """The median PSNR of pictures (n, 3, h, w) in -1..1, in dB."""
    return statistics.median(psnr(a, b, peak=2) for a, b in zip(pixels, exact, strict=True))


def time_variants(model: StableDiffusion) -> dict[str, float]:
    """Median seconds for one picture of each variant, interleaved."""
    request = gradina.Request(prompt="a teddy bear on a pink background", seed=SEED)

    def draw(fields: Mapping[str, Any]) -> list[gradina.Picture]:
        return list(gradina.generate(model, replace(request, **fields)))

    return medians({variant: partial(draw, fields) for variant, fields in VARIANTS.items()}, ROUNDS, digits=3)


def write_times(model: str) -> None:
    """Updates the times of the written report."""
    report = json.loads(REPORT.read_text())
    for variant, seconds in time_variants(gradina.load(model)).items():
        report["ways"][variant]["seconds for one picture"] = seconds
    print(json.dumps(report, indent=2))
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
