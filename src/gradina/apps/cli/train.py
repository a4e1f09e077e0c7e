"""The verb that trains."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gradina.apps.cli import options as o
from gradina.files import check_writable_folder

if TYPE_CHECKING:
    from gradina.training.pretrain.run import Progress

SAY_EVERY = 30.0  # seconds, where nobody watches a bar


def train(recipe: o.Recipe, out: o.Out = None, threads: o.Threads = None, quiet: o.Quiet = False) -> None:
    """Train a model from a recipe; the same command resumes."""
    from gradina.runtime.device import use_threads
    from gradina.training.pretrain.recipes import read_recipe
    from gradina.training.pretrain.run import run

    read = read_recipe(recipe)
    folder = Path(out or f"runs/{read.name}")
    check_writable_folder(folder)
    use_threads(threads)
    with asked_to_stop() as stopped, preparations_said(quiet):
        running = run(read, folder)
        for line in told(running):
            if not quiet:
                said(line)
            if stopped:
                running.close()  # keeps the state after the last whole step
                said("")
                typer.echo(f"the same command goes on from here ({folder})")
                raise typer.Exit(130)
    if not quiet:
        said("")
    typer.echo(folder / "model")


def told(running: Iterator[Progress]) -> Iterator[str]:
    """One line for each step: stage, step, loss, speed and the time that the stage still needs."""
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
def asked_to_stop() -> Iterator[list[int]]:
    """A list that is not empty once Ctrl-C was pressed or the process was asked to end; a second time ends it."""
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def preparations_said(quiet: bool) -> Iterator[None]:
    """What takes its time before a stage's first step is said when it begins."""
    log, handler = logging.getLogger("gradina.training"), logging.Handler()
    handler.emit = lambda record: said(record.getMessage(), always=True)  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.levelno < logging.WARNING)  # those are notes, which all verbs print
    before = log.level
    if not quiet:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


_said = 0.0


def said(line: str, always: bool = False) -> None:
    global _said
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line and (always or time.monotonic() - _said > SAY_EVERY):
        _said = time.monotonic()
        print(line, file=sys.stderr, flush=True)
