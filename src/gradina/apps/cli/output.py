"""Where the command line writes: files, checked before a model is loaded, and progress and notes on standard error."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gradina.errors import RequestError
from gradina.files import atomic_write, check_writable, check_writable_folder, unused_path, with_ending
from gradina.images.picture import Picture
from gradina.request_checks import check_choice

if TYPE_CHECKING:
    from PIL import Image

    from gradina.request import Request

CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # with their escapes
SLUG_BYTES = 200  # of the 255 that a name may have; seed, number and suffix follow


def print_note(note: str) -> None:
    """Prints a note on standard error."""
    print(f"gradina: note: {one_line(note)}", file=sys.stderr)


@contextmanager
def logged(to: Callable[[str], object], name: str, levels: range) -> Iterator[None]:
    """Hands the messages that a logger gets meanwhile, at some levels, to a function."""
    log, handler = logging.getLogger(name), logging.Handler()
    handler.addFilter(lambda record: record.levelno in levels)
    handler.emit = lambda record: to(record.getMessage())  # type: ignore[assignment,method-assign]
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, if that is a terminal: `advance(what, done, of)`."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, of: bar.update(task, description=what, completed=done, total=of)


def one_line(text: str) -> str:
    """A text in one line, with control characters escaped, which a terminal would obey."""
    return " ".join(text.split()).translate(CONTROL_CHARACTERS)


def save_image(image: Image.Image, path: str) -> None:
    """Writes an image, and prints its path."""
    from gradina.images.open import SAVE_OPTIONS

    options = SAVE_OPTIONS[check_choice("--output", Path(path).suffix.lower(), tuple(SAVE_OPTIONS))]
    with atomic_write(path) as file:
        image.save(file, **options)
    typer.echo(path)


def check_files(request: Request, output: str | None, film: str | None, strip: str | None) -> None:
    """Raises an error for files that cannot be read or written, before a model is loaded."""
    from gradina.images.grid import FILMS
    from gradina.images.open import SAVE_OPTIONS, open_mask, open_picture

    if request.init_image is not None:
        open_picture(request.init_image)
    if request.mask_image is not None:
        open_mask(request.mask_image)
    outputs = (("--output", output, SAVE_OPTIONS), ("--film", film, FILMS), ("--strip", strip, (".png",)))
    for name, path, kinds in outputs:
        if path is not None and not (name == "--output" and is_folder(path)):
            check_target(name, path, kinds)
    if output is None or is_folder(output):
        check_writable_folder(output or ".")
    named = (("--init-image", request.init_image), ("--mask-image", request.mask_image))
    check_distinct(("--output", output), ("--film", film), ("--strip", strip), *named)


def check_target(name: str, path: str, kinds: Iterable[str] = ()) -> str:
    """The path of a file to write. Raises RequestError unless it can be written and ends in one of `kinds`, if any."""
    if kinds and Path(path).suffix.lower() not in kinds:
        raise RequestError(f"{name}: got {path}, expected a name that ends in {', '.join(kinds)}")
    if not Path(path).parent.is_dir():
        raise RequestError(f"{name}: there is no folder {Path(path).parent}; make it first")
    check_writable(path)
    return path


def check_distinct(*files: tuple[str, Any]) -> None:
    """Raises RequestError where a file that is read would be overwritten, or one be written twice."""
    seen: dict[Path, str] = {}
    for name, path in files:
        if isinstance(path, str) and not is_folder(path):
            other = seen.setdefault(Path(path).resolve(), name)
            if other != name:
                raise RequestError(f"{other}: got {path}, which is also {name}; give another name")


def is_folder(path: str) -> bool:
    """Whether an output names a folder."""
    return path.endswith(("/", "\\")) or os.path.isdir(path)


def output_path(picture: Picture, output: str | None, alone: bool) -> Path:
    """Where a picture is written; a name that the user did not give never replaces a file."""
    own = f"{slug(picture.request.prompts[0])}-{picture.seed}.png"
    if output is None or is_folder(output):
        Path(output or ".").mkdir(parents=True, exist_ok=True)
        return unused_path(Path(output or ".") / own)
    path = Path(output)
    return path if alone else with_ending(path, f"-{picture.seed}{path.suffix}")


def slug(prompt: str) -> str:
    """A prompt as the stem of a file name: at most 60 letters, and SLUG_BYTES bytes."""
    letters = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60]
    return letters.encode()[:SLUG_BYTES].decode("utf-8", "ignore") or "picture"
