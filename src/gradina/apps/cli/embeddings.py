"""Embeddings of picture files, cached by their content in one file for each pair, which may be removed at any time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradina.apps.cli.output import print_note
from gradina.errors import PictureError
from gradina.files import Stamp, cache_folder, file_sha256, stamp

if TYPE_CHECKING:
    from torch import Tensor

    from gradina.weights.formats.clip import ContrastivePair

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CachedEmbedding:
    """A picture file's embedding (d,), with the stamp and hash that tell whether the file has changed."""

    stamp: Stamp
    content: str  # SHA-256
    embedding: Tensor


Cache = dict[str, CachedEmbedding]  # by path


def embed_files(
    pair: ContrastivePair, paths: Sequence[Path], advance: Advance, needed: Collection[Path] = ()
) -> Iterator[tuple[Path, Tensor]]:
    """Each picture with its embedding (d,); one that cannot be read is noted and skipped, unless it is `needed`."""
    import torch

    from gradina.tasks.retrieval import BATCH_SIZE, embed_pixels, preprocess

    for start in range(0, len(paths), BATCH_SIZE):
        advance("looking", start, len(paths))
        pixels = {}
        for path in paths[start : start + BATCH_SIZE]:
            try:
                pixels[path] = preprocess(pair, path)
            except PictureError as error:
                if path in needed:
                    raise
                print_note(f"left out: {str(error).removeprefix('picture: ')}")
        if pixels:
            yield from zip(pixels, embed_pixels(pair, torch.stack(list(pixels.values()))), strict=True)


def cached_embeddings(
    pair: ContrastivePair, folder: Path, paths: Sequence[Path], advance: Advance
) -> dict[Path, Tensor]:
    """The embeddings (d,) of the readable pictures of a folder; new ones are cached even if this is interrupted."""
    place = cache_folder() / "embeddings" / f"{pair.fingerprint}.safetensors"
    kept, names = _read_cache(place), {path: str(path.resolve()) for path in paths}
    looked = {
        path: (now, _content(path))
        for path, now in ((path, stamp(path)) for path in paths)
        if not now or names[path] not in kept or kept[names[path]].stamp != now
    }
    by_content = {seen.content: seen.embedding for seen in kept.values()}
    moved = {path for path, (_, known) in looked.items() if known in by_content}
    done: Cache = {names[path]: CachedEmbedding(*looked[path], by_content[looked[path][1]]) for path in moved}
    new = [path for path in looked if path not in moved]
    try:
        for path, embedding in embed_files(pair, new, advance):
            done[names[path]] = CachedEmbedding(*looked[path], embedding)
    finally:
        if done:
            here, there = f"{folder.resolve()}/", set(names.values())
            others = {name: seen for name, seen in kept.items() if name in there or not name.startswith(here)}
            _write_cache(place, others | done)
    found = kept | done
    failed = {names[path] for path in looked} - set(done)
    return {path: found[names[path]].embedding for path in paths if names[path] not in failed}


def _content(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:  # gone since the folder was listed; opening it says so
        return ""


def _read_cache(place: Path) -> Cache:
    """The cache, empty where its file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, "pt") as file:
            rows = json.loads((file.metadata() or {})["pictures"])
            embeddings = file.get_tensor("embeddings")
        return {
            name: CachedEmbedding(tuple(when), known, x)
            for (name, when, known), x in zip(rows, embeddings, strict=True)
        }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return {}


def _write_cache(place: Path, kept: Cache) -> None:
    import torch

    from gradina.weights.safetensors import save_weights

    rows = [[name, seen.stamp, seen.content] for name, seen in kept.items()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        embeddings = torch.stack([seen.embedding for seen in kept.values()])
        save_weights({"embeddings": embeddings}, place, {"pictures": json.dumps(rows)})
    except OSError as error:
        print_note(f"embeddings are not kept for the next time: {error}")
