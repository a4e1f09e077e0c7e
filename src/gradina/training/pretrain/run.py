"""A run of a recipe: its stages in order, each resumed where it stopped, with a log, samples and a model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from filelock import FileLock, Timeout

from gradina.errors import Diverged, RecipeError
from gradina.files import atomic_write
from gradina.training.checkpoint import load_state, save_average, save_state
from gradina.training.loop import State, TrainStep, train
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import Recipe
from gradina.training.pretrain.stages import Stage, stage
from gradina.weights.formats.clip import write_pair
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.model_card import model_card

LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class Progress:
    """A step of a run: the stage, the step, and how many steps the stage has."""

    stage: str
    step: TrainStep
    steps: int


def run(recipe: Recipe, folder: Path) -> Generator[Progress]:
    """Trains the unfinished stages, and yields after each step; the same call resumes after any interruption.

    The folder gets, for each stage, its log, samples and `weights.safetensors` (until then `state.safetensors`), and
    at the end `model`, in half precision, with the contrastive pair beside it. Raises RecipeError, also where another
    process trains in the folder.
    """
    experiment = Experiment(recipe, folder)
    with locked(folder):
        for name in experiment.stages:
            if not experiment.is_finished(name):
                fingerprint = experiment.fingerprint(name)
                state = yield from train_stage(
                    stage(experiment, name), experiment.folder(name), fingerprint,
                    recipe.sample_every, recipe.checkpoint_every, recipe.snapshots,
                )  # fmt: skip
                save_average(state, experiment.weights(name), fingerprint)
                (experiment.folder(name) / "state.safetensors").unlink(missing_ok=True)
        _write_model(experiment)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in this folder; the lock is freed however a process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise RecipeError(f"{folder}: somebody trains here already; wait, or choose another --out folder") from None
    with lock:
        yield


def _write_model(experiment: Experiment) -> None:
    """Writes the finished model with its contrastive pair and its card."""
    model, recipe = experiment.model(experiment.text_to_latent), experiment.recipe
    with tempfile.TemporaryDirectory() as room:
        write_pair(experiment.pair, Path(room) / "clip", torch.float16)
        model = replace(model, clip=Path(room) / "clip")
        card = model_card(model, torch.float16, recipe.license, training_report(experiment))
        write_folder(replace(model, card=card), experiment.path / "model", torch.float16)


def train_stage(
    stage: Stage, folder: Path, fingerprint: str, sample_every: int, checkpoint_every: float, snapshots: bool = False
) -> Generator[Progress, None, State]:
    """Takes the remaining steps of a stage in its folder, with a log, samples and checkpoints; returns its state.

    Where the caller closes it, or the loss is not finite, the state of the last good step is kept.
    """
    state, path = State.begin(stage.network, stage.settings, stage.rates), folder / "state.safetensors"
    load_state(state, path, fingerprint)
    log = Log(folder / "log.jsonl", state.step)
    saved = time.monotonic()
    try:
        for step in train(state, stage.loss, stage.settings):
            last = step.step == stage.settings.steps
            sampled = last or step.step % sample_every == 0
            validation = stage.validation() if sampled and stage.validation else None
            if last or step.step % LOG_EVERY == 0 or validation is not None:
                log.write(step, validation)
            if sampled:
                with atomic_write(folder / f"{step.step:06}.png") as file:
                    stage.sample(state.ema).save(file, "PNG")
                if snapshots:
                    save_average(state, folder / f"{step.step:06}.safetensors", fingerprint)
            if last or time.monotonic() - saved >= checkpoint_every:
                save_state(state, path, fingerprint)
                saved = time.monotonic()
            yield Progress(folder.name, step, stage.settings.steps)
    except (GeneratorExit, Diverged):
        save_state(state, path, fingerprint)
        raise
    return state


def training_report(experiment: Experiment) -> str:
    """How a model was trained, in Markdown, for its card; stages whose log was removed are left out."""
    recipe, rows, total = experiment.recipe, [], 0.0
    for name, planned in experiment.stages.items():
        settings, log = planned.settings, experiment.folder(name) / "log.jsonl"
        steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        if not steps:
            continue
        minutes = median(step["seconds"] for step in steps) * settings.steps / 60
        loss = sum(step["loss"] for step in steps[-10:]) / len(steps[-10:])
        rows.append(f"| {name} | {settings.steps} | {settings.batch} | {settings.lr:g} | {loss:.4f} | {minutes:.0f} |")
        total += minutes
    packages = ", ".join(recipe.with_image_encoder_data.data.packages)
    names, *continuations = experiment.data.phrases()
    names = names[: recipe.unet.training[-1].classes]  # those that the U-Net draws
    origin = f"{recipe.data.source} (npm: {packages})" if packages else recipe.data.source
    return "\n".join(
        (
            recipe.description,
            "",
            f"Trained from nothing, on {origin} with captions in words, by `gradina train recipes/{recipe.name}.toml`:",
            "",
            "| stage | steps | batch | learning rate | last loss | minutes |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"Together {total / 60:.1f} hours on {torch.get_num_threads()} threads (the median step, times the steps).",
            "",
            f"It has words for {len(names)} things: {', '.join(names)}.",
            *(f"\nEach may go on {' or '.join(filter(None, each))}." for each in continuations),
        )
    )


class Log:
    """One JSON line for every tenth step; lines after the step from which a run resumes are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as file:
            file.writelines(row.encode() for row in old if _step_of(row) <= step)

    def write(self, step: TrainStep, validation: float | None = None) -> None:
        """Adds a step, and the validation loss, if it was measured."""
        row = asdict(step) | ({} if validation is None else {"validation": validation})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(row: str) -> float:
    """The step of a line of the log; a line cut short by a crash is later than any."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")
