"""What do the shortcuts cost? The same pictures with and without each, judged, timed and compared.

    python evaluation/shortcuts.py [--model emoji] [--pictures 160] [--quick | --times]

For each: seconds for one picture (median, in turns with the others), likeness to the exact picture of the same seed
(PSNR, dB), things recognised by the judge of `evaluation/emoji.py`, and CLIP score: the mean cosine of the picture and
its prompt, by the model's own pair. Fewer steps, exactly drawn, are what each shortcut has to beat. Prints a table, and
writes `evaluation/shortcuts.json` and `docs/shortcuts.png`.
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
from judges import SEED, seen
from torch import Tensor
from trials import Court, court_of, prompts_for, share

import gradina
from gradina.bench.timing import medians
from gradina.images import grid
from gradina.pipeline.model import StableDiffusion, to_image
from gradina.tasks import retrieval
from gradina.tasks.metrics import psnr
from gradina.training.data.dataset import generator
from gradina.training.pretrain.recipes import read_recipe

ROOT = Path(__file__).parent.parent
WRITTEN = ROOT / "evaluation" / "shortcuts.json"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "reuse 2": {"reuse": 2},
    "reuse 3": {"reuse": 3},
    "guidance at sigma 0.3 to 6": {"guidance_interval": (0.3, 6.0)},
    "both": {"guidance_interval": (0.3, 6.0), "reuse": 2},
    "14 steps": {"steps": 14},
    "10 steps": {"steps": 10},
    "7 steps": {"steps": 7},
}
TIMED = 9  # pictures of each way, in turns


def main() -> None:
    """Draws, judges, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--pictures", type=int, default=160, help="to judge of each way (default: 160)")
    parser.add_argument("--quick", action="store_true", help="teach the judges for a minute only, and write nothing")
    parser.add_argument("--times", action="store_true", help="take the times again, and judge nothing anew")
    options = parser.parse_args()
    if options.times:
        write_times(options.model)
        return
    recipe = read_recipe(ROOT / "recipes" / "emoji.toml")
    court = court_of(gradina.load(options.model), recipe, 0.1 if options.quick else 1.0)
    told: dict[str, Any] = {
        "pictures": options.pictures,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    rows, picture = judged(court, options.pictures)
    seconds = timed(court.model)
    told["ways"] = {way: {"seconds for one picture": seconds[way]} | row for way, row in rows.items()}
    print(json.dumps(told, indent=2))
    if not options.quick:
        WRITTEN.write_text(json.dumps(told, indent=2) + "\n")
        picture.save(ROOT / "docs" / "shortcuts.png")


def judged(court: Court, count: int) -> tuple[dict[str, dict[str, float]], Any]:
    """Likeness, things recognised and CLIP score of each way, and a row of pictures of each."""
    key = generator(SEED, "shortcuts")
    icons = torch.randperm(len(court.trained.icons), generator=key)[:count]
    prompts, _ = prompts_for(court.trained, icons, key)
    things, pair = court.trained.icons.things[icons], retrieval.open_pair(court.model)
    words = retrieval.embed_texts(pair, prompts)
    rows: dict[str, dict[str, float]] = {}
    exact, shown = None, []
    for way, fields in WAYS.items():
        pixels = court.draw(prompts, **fields)
        exact = pixels if exact is None else exact
        pictures = [to_image(p) for p in pixels]
        shown += pictures[:8]
        rows[way] = {
            **({"likeness, dB": round(likeness(pixels, exact), 1)} if fields else {}),
            "things recognised": round(share(seen(court.things, pixels) == things), 4),
            "CLIP score": round(float((retrieval.embed_pictures(pair, pictures) * words).sum(1).mean()), 4),
        }
    return rows, grid.grid(shown, columns=8, row_labels=list(WAYS))


def likeness(pixels: Tensor, exact: Tensor) -> float:
    """The median PSNR of pictures (n, 3, h, w) in -1..1, in dB."""
    return statistics.median(psnr(a, b, peak=2) for a, b in zip(pixels, exact, strict=True))


def timed(model: StableDiffusion) -> dict[str, float]:
    """Seconds for one picture, by way: the median, in turns."""
    request = gradina.Request(prompt="a teddy bear on a pink background", seed=SEED)

    def drawn(fields: Mapping[str, Any]) -> list[gradina.Picture]:
        return list(gradina.generate(model, replace(request, **fields)))

    return medians({way: partial(drawn, fields) for way, fields in WAYS.items()}, TIMED, digits=3)


def write_times(model: str) -> None:
    """Puts new times into what was written before."""
    told = json.loads(WRITTEN.read_text())
    for way, seconds in timed(gradina.load(model)).items():
        told["ways"][way]["seconds for one picture"] = seconds
    print(json.dumps(told, indent=2))
    WRITTEN.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
