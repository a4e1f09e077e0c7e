"""The verb that trains, and the progress that it shares with fine-tuning."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.output import logged
from gradina.files import check_writable_folder

if TYPE_CHECKING:
    from gradina.training.pretrain.run import Progress

Result = TypeVar("Result")
SHOW_EVERY = 30.0  # seconds, where there is no terminal


def train(recipe: o.Recipe, out: o.RunFolder = None, threads: o.Threads = None, quiet: o.Quiet = False) -> None:
    """Train a model from a recipe; the same command resumes."""
    from gradina.runtime.device import use_threads
    from gradina.training.pretrain.recipes import read_recipe
    from gradina.training.pretrain.run import run

    read = read_recipe(recipe)
    folder = Path(out or f"runs/{read.name}")
    check_writable_folder(folder)
    use_threads(threads)
    with preparations_shown(quiet):
        watched(run(read, folder), folder, quiet, typer.echo)
    typer.echo(folder / "model")


def watched(
    running: Generator[Progress, None, Result], folder: Path, quiet: bool, note: Callable[[str], None]
) -> Result:
    """Takes the steps of a run, shows its progress, and stops between two steps when asked to; returns its result."""
    results: list[Result] = []

    def steps() -> Iterator[Progress]:
        results.append((yield from running))

    with stop_requested() as stopped:
        for line in progress_lines(steps()):
            if not quiet:
                show(line)
            if stopped:
                running.close()  # keeps the state after the last whole step
                show("")
                note(f"run the same command again to resume ({folder})")
                raise typer.Exit(130)
    show("")
    return results[0]


def progress_lines(running: Iterator[Progress]) -> Iterator[str]:
    """One line for each step: stage, step, loss, speed and the remaining time of the stage."""
    recent: deque[float] = deque(maxlen=200)
    stage = ""
    for now in running:
        if now.stage != stage:
            stage = now.stage
            recent.clear()
        recent.append(now.step.seconds)
        each = sum(recent) / len(recent)
        left = timedelta(seconds=round(each * (now.steps - now.step.step)))
        yield f"{now.stage}  {now.step.step}/{now.steps}  loss {now.step.loss:.4f}  {1 / each:.1f} steps/s  {left} left"


@contextmanager
def stop_requested() -> Iterator[list[int]]:
    """A list that is not empty after SIGINT or SIGTERM; a second signal ends the process."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def preparations_shown(quiet: bool) -> Iterator[None]:
    """Shows what is logged before the first step of a stage, which may take long."""
    if quiet:
        yield
        return
    log = logging.getLogger("gradina.training")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        with logged(partial(show, always=True), log.name, range(logging.WARNING)):  # warnings are notes of all verbs
            yield
    finally:
        log.setLevel(before)


_shown = 0.0


def show(line: str, always: bool = False) -> None:
    """Writes a line over the last one on a terminal; elsewhere now and then, or `always`."""
    global _shown
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line and (always or time.monotonic() - _shown > SHOW_EVERY):
        _shown = time.monotonic()
        print(line, file=sys.stderr, flush=True)
