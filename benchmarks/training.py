"""How long does a recipe take here? Times some steps of each stage on an otherwise idle machine, and extrapolates.

    python benchmarks/training.py [recipes/digits.toml] [--steps 40]

The stages before the one that is timed are only initialised, which does not change its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from gradina.training.checkpoint import save_average
from gradina.training.loop import State, train
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import read_recipe
from gradina.training.pretrain.stages import stage


def main() -> None:
    """Measures, and prints a table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/digits.toml")
    parser.add_argument("--steps", type=int, default=40, help="to time, of each stage (default: 40)")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    rows, total = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(recipe, Path(folder))
        for name in experiment.stages:
            timed = stage(experiment, name)
            settings = timed.settings
            state = State.begin(timed.network, settings, timed.rates)
            some = replace(settings, steps=options.steps)
            each = statistics.median(step.seconds for step in train(state, timed.loss, some))
            save_average(state, experiment.weights(name), experiment.fingerprint(name))
            minutes = each * settings.steps / 60
            rows[name] = {
                "ms per step": round(1000 * each, 1),
                "steps": settings.steps,
                "minutes": round(minutes, 1),
            }
            total += minutes
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "recipe": options.recipe}
    print(json.dumps({**about, "stages": rows, "minutes": round(total, 1)}, indent=2))


if __name__ == "__main__":
    main()
