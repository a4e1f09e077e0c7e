"""What do more hours give? Loss, and what judges recognise, over the hours of a run that has kept snapshots.

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
from judges import SEED, judge_of_things, line_up, seen
from torch import Tensor, nn
from torch.nn import functional as F
from trials import all_icons, data_of, prompts_for, share

import gradina
from gradina.pipeline.model import to_pixels
from gradina.training.checkpoint import load_average
from gradina.training.data.dataset import generator
from gradina.training.data.synthetic import IconScenes
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import read_recipe

ROOT = Path(__file__).parent.parent
WINDOW = 500  # steps over which the loss is averaged

Row = dict[str, float | str]


def hours_of(experiment: Experiment, stage: str) -> tuple[float, dict[int, float]]:
    """Hours that a step takes, the median, and the loss at the steps that were logged."""
    rows = [json.loads(line) for line in (experiment.path / stage / "log.jsonl").read_text().splitlines()]
    return median(row["seconds"] for row in rows) / 3600, {row["step"]: row["loss"] for row in rows}


def drawn(experiment: Experiment, weights: Path, side: int | None, prompts: list[str]) -> Tensor:
    """One picture for each prompt by the U-Net with those weights, at 128x128."""
    networks = load_average(experiment.untrained(experiment.networks.text_to_latent, "unet"), weights)
    request = gradina.Request(prompt=tuple(prompts), seed=SEED, width=side, height=side)
    pictures = gradina.generate(experiment.model(networks), request)
    pixels = torch.stack([to_pixels(picture.image) for picture in pictures])
    return pixels if side is None else F.interpolate(pixels, 128, mode="bilinear")


def measured(experiment: Experiment, data: IconScenes, held: IconScenes, judge: nn.Module, pictures: int) -> list[Row]:
    """A row for each snapshot."""
    icons = torch.randperm(len(data.icons), generator=generator(SEED, "hours"))[:pictures]
    prompts, grounds = prompts_for(data, icons, generator(SEED, "grounds"))
    things, styles, every = data.icons.things[icons], data.icons.styles[icons], all_icons(data, held)
    stages = experiment.folder.stages
    earlier = [name for name in stages if stages[name].part not in ("unet", "vision")]
    before = sum(hours_of(experiment, stage)[0] * stages[stage].settings.steps for stage in earlier)
    rows: list[Row] = []
    for stage in experiment.folder.phases("unet"):
        if not (experiment.path / stage / "log.jsonl").exists():
            continue
        each, losses = hours_of(experiment, stage)
        side = experiment.recipe.unet.training[stages[stage].phase].pixels
        for weights in sorted((experiment.path / stage).glob("0*.safetensors")):
            step = int(weights.stem)
            pixels = drawn(experiment, weights, side, prompts)
            near = [loss for at, loss in losses.items() if step - WINDOW < at <= step]
            rows.append(
                {
                    "stage": stage,
                    "step": step,
                    "hours": round(before + each * step, 3),
                    "loss": round(sum(near) / len(near), 4),
                    "thing": share(seen(judge, pixels) == things),
                    "style": share(line_up(pixels, things, grounds, every) == styles),
                }
            )
            print(rows[-1], flush=True)
        before += each * stages[stage].settings.steps
    return rows


def plotted(rows: list[Row], path: Path) -> None:
    """Recognition and loss over hours."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    hours = [float(row["hours"]) for row in rows]
    for name in ("thing", "style"):
        above.plot(hours, [100 * float(row[name]) for row in rows], "o-", label=f"{name} recognised")
    above.set_ylabel("of pictures, %")
    above.set_ylim(0, 100)
    above.legend(loc="lower right")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == stage]
        below.plot([float(r["hours"]) for r in of_stage], [float(r["loss"]) for r in of_stage], "o-", label=str(stage))
    below.set_ylabel("loss")
    below.set_xlabel("hours of training, those of the autoencoder and the contrastive pair included")
    below.legend(loc="upper right")
    for axes in (above, below):
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
    rows = measured(experiment, data, held, judge_of_things(pairs), options.pictures)
    found = {"pictures": options.pictures, "torch": torch.__version__, "snapshots": rows}
    (ROOT / "evaluation" / "emoji-hours.json").write_text(json.dumps(found, indent=2) + "\n")
    plotted(rows, ROOT / "docs" / "emoji" / "hours.png")


if __name__ == "__main__":
    main()
