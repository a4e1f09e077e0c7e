"""Loss and recognition over the hours of a training run that kept snapshots.

    python evaluation/hours.py [--run runs/emoji] [--pictures 200]

Draws with every snapshot of the U-Net, prints a table, writes `evaluation/emoji-hours.json` and `docs/emoji/hours.png`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch
from classifiers import SEED, nearest_icon_style, predicted, thing_classifier
from measurements import all_icons, data_of, fraction, prompts_for
from torch import Tensor, nn
from torch.nn import functional as F

import gradina
from gradina.images.tensor import to_pixels
from gradina.training.checkpoint import load_average
from gradina.training.data.dataset import generator
from gradina.training.data.synthetic import IconScenes
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import read_recipe

ROOT = Path(__file__).parent.parent
WINDOW = 500  # steps over which the loss is averaged

Row = dict[str, float | str]


def hours_and_losses(experiment: Experiment, stage: str) -> tuple[float, dict[int, float]]:
    """Median hours per step, and the loss at the logged steps."""
    rows = [json.loads(line) for line in (experiment.folder(stage) / "log.jsonl").read_text().splitlines()]
    return median(row["seconds"] for row in rows) / 3600, {row["step"]: row["loss"] for row in rows}


def generate(experiment: Experiment, weights: Path, side: int | None, prompts: list[str]) -> Tensor:
    """One picture for each prompt by the U-Net with those weights, at 128x128."""
    networks = load_average(experiment.untrained(experiment.new_text_to_latent, "unet"), weights)
    request = gradina.Request(prompt=tuple(prompts), seed=SEED, width=side, height=side)
    pictures = gradina.generate(experiment.model(networks), request)
    pixels = torch.stack([to_pixels(picture.image) for picture in pictures])
    return pixels if side is None else F.interpolate(pixels, 128, mode="bilinear")


def measure(
    experiment: Experiment, data: IconScenes, held: IconScenes, classifier: nn.Module, pictures: int
) -> list[Row]:
    """A row for each snapshot."""
    icons = torch.randperm(len(data.icons), generator=generator(SEED, "hours"))[:pictures]
    prompts, grounds = prompts_for(data, icons, generator(SEED, "grounds"))
    things, styles, icons_of_both = data.icons.things[icons], data.icons.styles[icons], all_icons(data, held)
    stages = experiment.stages
    earlier = [name for name in stages if stages[name].part not in ("unet", "decoder", "image_encoder")]
    before = sum(hours_and_losses(experiment, stage)[0] * stages[stage].settings.steps for stage in earlier)
    rows: list[Row] = []
    for stage in experiment.phases("unet"):
        if not (experiment.folder(stage) / "log.jsonl").exists():
            continue
        step_hours, losses = hours_and_losses(experiment, stage)
        side = experiment.recipe.unet.training[stages[stage].phase].pixels
        for weights in sorted(experiment.folder(stage).glob("0*.safetensors")):
            step = int(weights.stem)
            pixels = generate(experiment, weights, side, prompts)
            recent = [loss for at, loss in losses.items() if step - WINDOW < at <= step]
            rows.append(
                {
                    "stage": stage,
                    "step": step,
                    "hours": round(before + step_hours * step, 3),
                    "loss": round(sum(recent) / len(recent), 4),
                    "thing": fraction(predicted(classifier, pixels) == things),
                    "style": fraction(nearest_icon_style(pixels, things, grounds, icons_of_both) == styles),
                }
            )
            print(rows[-1], flush=True)
        before += step_hours * stages[stage].settings.steps
    return rows


def plot(rows: list[Row], path: Path) -> None:
    """Plots recognition and loss over hours."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    hours = [float(row["hours"]) for row in rows]
    for name in ("thing", "style"):
        top.plot(hours, [100 * float(row[name]) for row in rows], "o-", label=f"{name} recognised")
    top.set_ylabel("of pictures, %")
    top.set_ylim(0, 100)
    top.legend(loc="lower right")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == stage]
        bottom.plot([float(r["hours"]) for r in of_stage], [float(r["loss"]) for r in of_stage], "o-", label=str(stage))
    bottom.set_ylabel("loss")
    bottom.set_xlabel("hours of training, those of the autoencoder and the contrastive pair included")
    bottom.legend(loc="upper right")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "emoji", help="its folder (default: runs/emoji)")
    parser.add_argument("--pictures", type=int, default=200, help="for each snapshot (default: 200)")
    options = parser.parse_args()
    recipe = read_recipe(ROOT / "recipes" / "emoji.toml")
    experiment, pairs = Experiment(recipe, options.run), data_of(recipe.drawn, "pairs")
    data, held = replace(data_of(recipe.drawn, "train"), scenes=0.0), data_of(recipe.drawn, "held out")
    rows = measure(experiment, data, held, thing_classifier(pairs), options.pictures)
    found = {"pictures": options.pictures, "torch": torch.__version__, "snapshots": rows}
    (ROOT / "evaluation" / "emoji-hours.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(rows, ROOT / "docs" / "emoji" / "hours.png")


if __name__ == "__main__":
    main()
