"""The verbs that compare pictures with words: caption, search."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.embeddings import cached_embeddings, embed_files
from gradina.apps.cli.output import check_target, print_note, progress, save_image
from gradina.errors import PictureError, RequestError
from gradina.files import atomic_write, check_writable
from gradina.texts import read_text

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gradina.weights.formats.clip import ContrastivePair

THUMBNAIL = 256  # pixels, the longer side of a picture in a grid


def caption(
    pictures: o.Pictures,
    best: o.Best = 5,
    phrases: o.Phrases = None,
    by: o.Captioner = "clip",
    write: o.WriteCaptions = False,
    model: o.PairModel = None,
    as_json: o.AsJson = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Say what pictures show, and write it down for training."""
    given = None if phrases is None else read_phrases(phrases)
    named = (pictures_under(name) if Path(name).is_dir() else [check_picture(name)] for name in pictures)
    files = list(dict.fromkeys(chain.from_iterable(named)))
    if write:
        from gradina.training.data.sidecars import without_captions

        there, files = len(files), without_captions(files)
        if there > len(files):
            print_note(f"{there - len(files)} of {there} pictures have captions already, which stay as they are")
        if not files:
            return
        for place in caption_paths(files).values():
            check_writable(place)
    if by == "clip":
        from gradina.tasks.retrieval import parts_of

        pair = load_pair(model, device, dtype, threads)
        parts_of(pair, given)  # refuses a pair without phrases before any picture is embedded
        with progress(quiet) as advance:
            found = dict(embed_files(pair, files, advance, needed={Path(name) for name in pictures}))
        rows = caption_pictures(pair, found, given, best) if found else []
    else:
        with progress(quiet) as advance:
            rows = generate_captions(files, by, device, threads, advance)
    if not rows and not write:
        raise PictureError(f"{', '.join(pictures)}: has no picture that can be read")
    if write:
        write_captions(rows)
        return
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        if len(files) > 1:
            typer.echo(printable(row["picture"]))
        for each in row["captions"]:
            sure = f"{100 * each['probability']:5.1f} %  " if "probability" in each else ""
            typer.echo(f"{sure}{each['text']}")


def search(
    folder: o.Folder,
    words: o.Words,
    best: o.Best = 10,
    sheet: o.GridOfHits = None,
    model: o.PairModel = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Find pictures by words."""
    asked = " ".join(words).strip()
    if not asked:
        raise RequestError('words: got none, expected what to look for, such as "a red apple"')
    files = pictures_under(folder)
    if sheet is not None:
        from gradina.images.open import SAVE_OPTIONS

        check_target("--sheet", sheet, SAVE_OPTIONS)
        if Path(sheet).resolve() in {path.resolve() for path in files}:
            raise RequestError(f"--sheet: got {sheet}, which is one of the pictures; give another name")
    import torch

    from gradina.tasks.retrieval import search as nearest

    pair = load_pair(model, device, dtype, threads)
    with progress(quiet) as advance:
        found = cached_embeddings(pair, Path(folder), files, advance)
    if not found:
        raise PictureError(f"{folder}: has no picture that can be read")
    paths = list(found)
    ranked = nearest(pair, torch.stack(list(found.values())), asked)
    hits = [(paths[hit.index], hit.score) for hit in ranked[:best]]
    for path, score in hits:
        typer.echo(f"{score:6.3f}  {printable(path)}")
    if sheet is not None:
        save_image(grid_of_hits(hits, asked), sheet)


def generate_captions(
    files: Sequence[Path], by: str, device: str | None, threads: int | None, advance: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """A captioning model's caption of each picture that can be read, as JSON."""
    from gradina.images.open import MAX_SOURCE_PIXELS, open_picture
    from gradina.runtime.device import pick_device, use_threads
    from gradina.tasks.captioning import BLIP, captioner

    use_threads(threads)
    say_of, rows = captioner(BLIP if by == "blip" else by, pick_device(device)), []
    for i, path in enumerate(files):
        advance("captions", i, len(files))
        try:
            image = open_picture(path, "picture", MAX_SOURCE_PIXELS)
        except PictureError as error:
            print_note(str(error))
            continue
        rows.append({"picture": str(path), "captions": [{"text": say_of(image)}]})
    return rows


def caption_paths(pictures: Sequence[Path]) -> dict[Path, Path]:
    """The caption file of each picture: dog.txt, or dog.png.txt where there is also a dog.jpg."""
    short = {path: path.with_suffix(".txt") for path in pictures}
    alike = Counter(str(place).lower() for place in short.values())
    unique = {path for path, place in short.items() if alike[str(place).lower()] == 1}
    return {path: place if path in unique else path.with_name(path.name + ".txt") for path, place in short.items()}


def write_captions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the best caption of each picture next to it, and prints the path."""
    places = caption_paths([Path(row["picture"]) for row in rows])
    for row in rows:
        path = places[Path(row["picture"])]
        with atomic_write(path) as file:
            file.write((row["captions"][0]["text"] + "\n").encode())
        typer.echo(printable(path))


def load_pair(name: str | None, device: str | None, dtype: str | None, threads: int | None) -> ContrastivePair:
    """Loads the contrastive pair that the options name."""
    from gradina.runtime.device import use_threads
    from gradina.tasks.retrieval import open_pair

    use_threads(threads)
    return open_pair(name, device=device, dtype=dtype)


def caption_pictures(
    pair: ContrastivePair, found: Mapping[Path, Tensor], phrases: Sequence[str] | None, best: int
) -> list[dict[str, Any]]:
    """The best captions of each picture, with probabilities, as JSON."""
    import torch

    from gradina.tasks.retrieval import describe

    captions = describe(pair, torch.stack(list(found.values())), phrases, best)
    return [
        {"picture": str(path), "captions": [{"text": c.text, "probability": round(c.probability, 6)} for c in some]}
        for path, some in zip(found, captions, strict=True)
    ]


def read_phrases(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    found = [line.strip() for line in read_text(path, RequestError, "--phrases: ").split("\n") if line.strip()]
    if not found:
        raise RequestError(f"--phrases: {path} has no lines; write one phrase per line")
    return found


def pictures_under(folder: str) -> list[Path]:
    """The pictures in a folder and below."""
    from gradina.images.folder import SUFFIXES, pictures_in

    path = Path(folder)
    if not path.is_dir():
        raise RequestError(f"{folder}: {'is no folder' if path.exists() else 'there is no such folder'}; give one")
    found = pictures_in(path)
    if not found:
        raise RequestError(f"{folder}: has no pictures in it (expected {', '.join(SUFFIXES)})")
    return found


def check_picture(name: str) -> Path:
    """The path of a picture. Raises PictureError if it is none."""
    from gradina.images.open import MAX_SOURCE_PIXELS, open_image

    with open_image(name, "picture", MAX_SOURCE_PIXELS):
        return Path(name)


def grid_of_hits(hits: Sequence[tuple[Path, float]], words: str) -> Image.Image:
    """The pictures that were found as one grid, each above its score and name."""
    from gradina.images import grid
    from gradina.images.open import MAX_SOURCE_PIXELS, open_picture

    thumbnails = []
    for path, _ in hits:
        thumbnails.append(open_picture(path, "picture", MAX_SOURCE_PIXELS))
        thumbnails[-1].thumbnail((THUMBNAIL, THUMBNAIL))
    return grid.grid(thumbnails, labels=[f"{score:.3f} {path.name}" for path, score in hits], title=words)


def printable(path: str | Path) -> str:
    """A path as text, with replacements for bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")
