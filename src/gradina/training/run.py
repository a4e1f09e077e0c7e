"""A run of a recipe: its stages in order, each continued where it stopped, with a log, samples and a model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from gradina.files import atomic_write
from gradina.models.unet import UNet
from gradina.training.checkpoint import load_average, load_state, save_state, steps_done
from gradina.training.loop import State, TrainStep, train
from gradina.training.recipes import Recipe
from gradina.training.samples import LOOKS, model_of
from gradina.training.stages import STAGES, Stage, Workshop
from gradina.weights.card import model_card
from gradina.weights.folders import write_folder

LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class Progress:
    """Where a run is: the stage, the step it took, and how many the stage has."""

    stage: str
    step: TrainStep
    steps: int


def run(recipe: Recipe, folder: Path) -> Generator[Progress]:
    """Trains what is not trained yet, and yields after each step; the same call goes on after any interruption.

    The folder gets, for each stage, `state.safetensors`, `log.jsonl` and samples, and at the end `model`, in half
    precision. Raises RecipeError.
    """
    shop = Workshop(recipe, folder)
    for name, row in STAGES.items():
        mark = fingerprint(recipe, name)
        if steps_done(shop.state(name), mark) < getattr(recipe, name).training.steps:
            yield from _train_stage(shop, name, row(shop), mark)
    unet = load_average(lambda: UNet(shop.unet), shop.state("unet"))
    model = model_of(shop, unet)
    card = model_card(model, torch.float16, recipe.license, story(recipe, folder))
    write_folder(replace(model, card=card), folder / "model", torch.float16)


def _train_stage(shop: Workshop, name: str, stage: Stage, mark: str) -> Generator[Progress]:
    state = State.begin(stage.network, stage.settings)
    load_state(state, shop.state(name), mark)
    log = Log(shop.folder / name / "log.jsonl", state.step)
    saved = time.monotonic()
    for step in train(state, stage.loss, stage.settings):
        last = step.step == stage.settings.steps
        if last or step.step % LOG_EVERY == 0:
            log.write(step)
        if last or step.step % shop.recipe.sample_every == 0:
            picture = LOOKS[name](shop, state.ema)
            with atomic_write(shop.folder / name / f"{step.step:06}.png") as file:
                picture.save(file, "PNG")
        if last or time.monotonic() - saved >= shop.recipe.checkpoint_every:
            save_state(state, shop.state(name), mark)
            saved = time.monotonic()
        try:
            yield Progress(name, step, stage.settings.steps)
        except GeneratorExit:  # closed by the caller: nothing that was learnt is lost
            save_state(state, shop.state(name), mark)
            raise


def story(recipe: Recipe, folder: Path) -> str:
    """How a model came about, in Markdown, for its card."""
    rows = []
    for name in STAGES:
        settings = getattr(recipe, name).training
        last = json.loads((folder / name / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        rows.append(f"| {name} | {settings.steps} | {settings.batch} | {settings.lr:g} | {last['loss']:.4f} |")
    packages = ", ".join(recipe.data.packages)
    origin = f"{recipe.data.source} (npm: {packages})" if packages else recipe.data.source
    return "\n".join(
        (
            recipe.description,
            "",
            f"Trained from nothing, on {origin} with captions in words, by `gradina train recipes/{recipe.name}.toml`:",
            "",
            "| stage | steps | batch | learning rate | last loss |",
            "|---|---:|---:|---:|---:|",
            *rows,
        )
    )


class Log:
    """One JSON line for every tenth step; what was logged after the state that a run goes on from is dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as file:
            file.writelines(row.encode() for row in old if _step_of(row) <= step)

    def write(self, step: TrainStep) -> None:
        """Adds a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")


def _step_of(row: str) -> float:
    """The step of a line of the log; a line cut short by a crash is later than any."""
    try:
        return float(json.loads(row)["step"])
    except ValueError:
        return float("inf")


def fingerprint(recipe: Recipe, stage: str) -> str:
    """What a stage and those before it are made from, as a hash; prompts and what a recipe leaves out do not count."""
    parts = list(STAGES)[: list(STAGES).index(stage) + 1]
    made_of = asdict(recipe, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})
    kept = {k: made_of[k] for k in ("seed", "data", "vocabulary", "schedule", *parts)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
