"""Embeddings of picture files: what cannot be read is said, and each picture passes through an image tower once.

They are kept in the user's cache by the pictures' content, one file for each pair; it can be removed at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradina.apps.cli.generate import say
from gradina.errors import PictureError
from gradina.files import Stamp, cache_folder, file_sha256, stamp

if TYPE_CHECKING:
    from torch import Tensor

    from gradina.weights.formats.clip import ContrastivePair

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Seen:
    """A picture file's embedding (d,), with what says that the file is still the same."""

    stamp: Stamp
    content: str  # SHA-256
    embedding: Tensor


Kept = dict[str, Seen]  # by path


def embedded(
    pair: ContrastivePair, paths: Sequence[Path], advance: Advance, needed: Collection[Path] = ()
) -> Iterator[tuple[Path, Tensor]]:
    """Each picture with its embedding (d,); what cannot be read is said and left out, unless it is `needed`."""
    import torch

    from gradina.tasks.retrieval import AT_ONCE, embed_pixels, preprocess

    for start in range(0, len(paths), AT_ONCE):
        advance("looking", start, len(paths))
        pixels = {}
        for path in paths[start : start + AT_ONCE]:
            try:
                pixels[path] = preprocess(pair, path)
            except PictureError as error:
                if path in needed:
                    raise
                say(f"left out: {str(error).removeprefix('picture: ')}")
        if pixels:
            yield from zip(pixels, embed_pixels(pair, torch.stack(list(pixels.values()))), strict=True)


def remembered(pair: ContrastivePair, folder: Path, paths: Sequence[Path], advance: Advance) -> dict[Path, Tensor]:
    """The embeddings (d,) of a folder's pictures, as far as they can be read; those that are new or changed are kept.

    Also where this ends early: what was done is not done again.
    """
    place = cache_folder() / "embeddings" / f"{pair.fingerprint}.safetensors"
    kept, names = _kept(place), {path: str(path.resolve()) for path in paths}
    looked = {
        path: (now, _content(path))
        for path, now in ((path, stamp(path)) for path in paths)
        if not now or names[path] not in kept or kept[names[path]].stamp != now
    }
    by_content = {seen.content: seen.embedding for seen in kept.values()}
    moved = {path for path, (_, known) in looked.items() if known in by_content}
    done: Kept = {names[path]: Seen(*looked[path], by_content[looked[path][1]]) for path in moved}
    new = [path for path in looked if path not in moved]
    try:
        for path, embedding in embedded(pair, new, advance):
            done[names[path]] = Seen(*looked[path], embedding)
    finally:
        if done:
            here, there = f"{folder.resolve()}/", set(names.values())
            others = {name: seen for name, seen in kept.items() if name in there or not name.startswith(here)}
            _keep(place, others | done)
    found = kept | done
    failed = {names[path] for path in looked} - set(done)
    return {path: found[names[path]].embedding for path in paths if names[path] not in failed}


def _content(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:  # gone since the folder was listed; opening it says so
        return ""


def _kept(place: Path) -> Kept:
    """What is in the cache; nothing, where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, "pt") as file:
            rows = json.loads((file.metadata() or {})["pictures"])
            embeddings = file.get_tensor("embeddings")
        return {name: Seen(tuple(when), known, x) for (name, when, known), x in zip(rows, embeddings, strict=True)}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return {}


def _keep(place: Path, kept: Kept) -> None:
    import torch

    from gradina.weights.safetensors import save_weights

    rows = [[name, seen.stamp, seen.content] for name, seen in kept.items()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        embeddings = torch.stack([seen.embedding for seen in kept.values()])
        save_weights({"embeddings": embeddings}, place, {"pictures": json.dumps(rows)})
    except OSError as error:
        say(f"embeddings are not kept for the next time: {error}")
