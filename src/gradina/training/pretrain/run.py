"""A run of a recipe: its stages in order, each continued where it stopped, with a log, samples and a model."""

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
from gradina.training.checkpoint import is_finished, load_state, save_average, save_state
from gradina.training.loop import State, TrainStep, train
from gradina.training.pretrain.experiment import Workshop
from gradina.training.pretrain.recipes import Recipe
from gradina.training.pretrain.stages import Stage, stage
from gradina.weights.formats.clip import write_pair
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.model_card import model_card

LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class Progress:
    """Where a run is: the stage, the step it took, and how many the stage has."""

    stage: str
    step: TrainStep
    steps: int


def run(recipe: Recipe, folder: Path) -> Generator[Progress]:
    """Trains what is not trained yet, and yields after each step; the same call goes on after any interruption.

    The folder gets, for each stage, its log, samples and `weights.safetensors` (until then `state.safetensors`), and
    at the end `model`, in half precision, with the contrastive pair beside it. Raises RecipeError, also where another
    process trains in the folder.
    """
    shop = Workshop(recipe, folder)
    with alone(folder):
        for name in shop.stages:
            if not _behind(shop, name):
                yield from _train(shop, name)
        _release(shop)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process trains in this folder meanwhile; the system frees it when a process ends, however it does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(f"{folder}: somebody trains here already; wait, or choose another --out folder") from None
    try:
        yield
    finally:
        lock.release()


def _release(shop: Workshop) -> None:
    """Writes the finished model, with the contrastive pair beside it and a card."""
    model, recipe, folder = shop.model(shop.painter), shop.recipe, shop.folder
    with tempfile.TemporaryDirectory() as room:
        write_pair(shop.pair, Path(room) / "clip", torch.float16)
        model = replace(model, clip=Path(room) / "clip")
        card = model_card(model, torch.float16, recipe.license, story(shop))
        write_folder(replace(model, card=card), folder / "model", torch.float16)


def _behind(shop: Workshop, name: str) -> bool:
    """Whether a stage is finished; the weights of a later phase stand for those of the phases before it."""
    stage = shop.stages[name]
    from_here = shop.phases(stage.part)[stage.phase :]
    return any(is_finished(shop.weights(phase), shop.mark(phase)) for phase in from_here)


def _train(shop: Workshop, name: str) -> Generator[Progress]:
    recipe, mark = shop.recipe, shop.mark(name)
    state = yield from learn(
        stage(shop, name), shop.folder / name, mark, recipe.sample_every, recipe.checkpoint_every, recipe.snapshots
    )
    save_average(state, shop.weights(name), mark)
    shop.state(name).unlink(missing_ok=True)


def learn(
    made: Stage, folder: Path, mark: str, sample_every: int, checkpoint_every: float, snapshots: bool = False
) -> Generator[Progress, None, State]:
    """Learns what is not learnt yet, in a folder of its own: log, samples, a state from which the same call goes on.

    Where the caller closes it, or the loss is no longer a number, what was learnt until then is kept.
    """
    state, path = State.begin(made.network, made.settings, made.rates), folder / "state.safetensors"
    load_state(state, path, mark)
    log = Log(folder / "log.jsonl", state.step)
    saved = time.monotonic()
    try:
        for step in train(state, made.loss, made.settings):
            last = step.step == made.settings.steps
            looked = last or step.step % sample_every == 0
            check = made.check() if looked and made.check else None
            if last or step.step % LOG_EVERY == 0 or check is not None:
                log.write(step, check)
            if looked:
                with atomic_write(folder / f"{step.step:06}.png") as file:
                    made.look(state.ema).save(file, "PNG")
                if snapshots:
                    save_average(state, folder / f"{step.step:06}.safetensors", mark)
            if last or time.monotonic() - saved >= checkpoint_every:
                save_state(state, path, mark)
                saved = time.monotonic()
            yield Progress(folder.name, step, made.settings.steps)
    except (GeneratorExit, Diverged):
        save_state(state, path, mark)
        raise
    return state


def story(shop: Workshop) -> str:
    """How a model came about, in Markdown, for its card; stages whose log was removed are left out."""
    recipe, rows, total = shop.recipe, [], 0.0
    for name, planned in shop.stages.items():
        settings, log = planned.settings, shop.folder / name / "log.jsonl"
        steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        if not steps:
            continue
        minutes = median(step["seconds"] for step in steps) * settings.steps / 60
        loss = sum(step["loss"] for step in steps[-10:]) / len(steps[-10:])
        rows.append(f"| {name} | {settings.steps} | {settings.batch} | {settings.lr:g} | {loss:.4f} | {minutes:.0f} |")
        total += minutes
    packages = ", ".join(shop.wider.data.packages)
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
            words(shop.data.phrases(), recipe.unet.training[-1].things),
        )
    )


def words(phrases: tuple[tuple[str, ...], ...], things: int | None) -> str:
    """What prompts can be made of, in Markdown: the names of the first so many things, and their continuations."""
    names, *more = phrases
    names = names[:things]
    rows = [f"It has words for {len(names)} things: {', '.join(names)}."]
    rows += ["Each may go on " + " or ".join(filter(None, each)) + "." for each in more]
    return "\n\n".join(rows)


class Log:
    """One JSON line for every tenth step; what was logged after the state that a run goes on from is dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as file:
            file.writelines(row.encode() for row in old if _step_of(row) <= step)

    def write(self, step: TrainStep, check: float | None = None) -> None:
        """Adds a step, and the loss on what is not learnt from, if it was measured."""
        row = asdict(step) | ({} if check is None else {"validation": check})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(row: str) -> float:
    """The step of a line of the log; a line cut short by a crash is later than any."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")
