"""The pictures of a folder with their captions, found where others keep them, and how often each is drawn.

In tables of metadata, in a file beside each picture, in the names of kohya's folders, or else in the names of files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gradina.errors import PictureError, RecipeError
from gradina.images.open import SUFFIXES, files_in, pictures_in
from gradina.texts import Read, decoded, reading
from gradina.training.data.captioned import (
    GIVEN_WORDS,
    Captioned,
    Tell,
    caption_of_json,
    shown,
    some,
    spoken,
    telling,
    trimmed,
)
from gradina.training.data.repeats import meant, repeated
from gradina.training.data.shards import ARCHIVES, SHARD, in_shard
from gradina.training.data.sidecar import beside
from gradina.training.data.tables import in_tables, is_table

NAMES = "names of files"
MASK = re.compile(r"(.*)-(mask|cond)label")  # how OneTrainer calls what goes with a picture
UNREAD = (  # endings of what others keep captions in, and is not read
    ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods", ".arrow", ".yaml", ".yml", ".toml", ".xml",
    ".xmp", ".tag", ".tags", ".cap", ".prompt", ".rtf", ".docx", ".html",
)  # fmt: skip
PLACEHOLDER = re.compile(r"\[(trigger|name|filewords)\]")
ADVICE = "put each into a .txt of its picture's name, or let `gradina caption FOLDER --write` do it"


def read_folder(source: str | Path, caption: str | None = None, out: str | Path | None = None) -> list[Captioned]:
    """The pictures of a folder, of shards in it or of one shard; `caption` is that of all, where they need none.

    What was drawn in `out` is left out. What is odd is told in notes. Raises RecipeError, naming files and lines, where
    there are no pictures, captions are missing for some, or what says them cannot be read.
    """
    source = Path(source)
    with reading(RecipeError) as read, telling() as tell:
        if source.is_file() and SHARD.fullmatch(source.name):
            found = in_shard(source, caption, read, tell)
        elif source.is_file():
            raise RecipeError(f"{source}: is a file, expected a folder of pictures or a .tar shard")
        elif not source.is_dir():
            raise RecipeError(f"{source}: there is no such folder of pictures")
        else:
            found = _in_folder(source, caption, _below(source, out), read, tell)
        for one in found:
            if match := PLACEHOLDER.search(one.caption):
                tell(one.name, f"{match[0]} in its caption stays as it is; write the words that it stands for")
    if not found:
        raise RecipeError(f"{source}: holds no pictures (expected {', '.join(SUFFIXES[:4])}, ... or .tar shards)")
    dumb = [one for one in found if not one.caption]
    if dumb:
        names = some([_within(one, source) for one in dumb])
        why = "; numbers and names that cameras give are none" if dumb[0].place == NAMES else ""
        above = f"; {source.name} says them where the folder above it is given" if meant(source.name) else ""
        if dumb[0].place.startswith("."):
            above += f"; {dumb[0].place} that are empty have to be removed before that"
        missing = f"captions are missing for {len(dumb)} of {len(found)} pictures ({names})"
        raise RecipeError(f"{source}: {missing}{why}; {ADVICE}{above}")
    return found


def _below(source: Path, out: str | Path | None) -> Path | None:
    """Where `out` lies in a folder, if it does; RecipeError where it is that folder."""
    if out is None or not Path(out).resolve().is_relative_to(source.resolve()):
        return None
    if Path(out).resolve() == source.resolve():
        raise RecipeError(f"{out}: holds the pictures that are learnt from; choose another --out folder")
    return source / Path(out).resolve().relative_to(source.resolve())


def _in_folder(source: Path, caption: str | None, out: Path | None, read: Read, tell: Tell) -> list[Captioned]:
    files = [path for path in files_in(source) if out is None or not path.is_relative_to(out)]
    shards = [path for path in files if SHARD.fullmatch(path.name) and path.is_file()]
    for path in files:
        known = shards or path.with_suffix("").is_dir()  # as img2dataset writes it, it says the same
        if path.suffix.lower() in (ARCHIVES if known else (*ARCHIVES, ".parquet", ".arrow", ".tfrecord")):
            tell(str(path), "is not read; unpack what is in it")
    pictures = _without_masks(_pictures(source, out, bool(shards), tell), tell)
    named = {path.relative_to(source).as_posix(): path for path in pictures}
    packed = [one for path in shards for one in in_shard(path, caption, read, tell)]
    where = [*named, *(one.file.relative_to(source).as_posix() for one in packed)]
    repeats = repeated(str(source), where, tell)
    if caption is None:
        loose = _captioned(source, files, named, bool(repeats), read, tell)
    else:
        loose = [Captioned(path, caption, place=GIVEN_WORDS) for path in pictures]
        texts = {
            source / text for some_of in beside(list(named), _relative(source, files)).values() for text in some_of
        }
        for path in files:
            if path in texts or is_table(path.name):
                tell(str(path), f'is not read, since "{shown(caption)}" is the caption of all pictures')
    return list(_repeated([*loose, *packed], source, repeats, tell)) if repeats else [*loose, *packed]


def _pictures(source: Path, out: Path | None, others: bool, tell: Tell) -> list[Path]:
    try:
        found = pictures_in(source)
    except PictureError as error:
        if others:
            return []
        raise RecipeError(str(error)) from error
    if out is not None and any(path.is_relative_to(out) for path in found):
        tell(str(out), "lies in the folder that is learnt from; the pictures that were drawn there are left out")
    return [path for path in found if out is None or not path.is_relative_to(out)]


def _without_masks(pictures: Sequence[Path], tell: Tell) -> list[Path]:
    """Without the masks that OneTrainer keeps beside its pictures."""
    stems, found = {path.parent / path.stem for path in pictures}, []
    for path in pictures:
        match = MASK.fullmatch(path.stem)
        if match and path.parent / match[1] in stems:
            tell(str(path), "is a mask beside its picture, and is left out")
        else:
            found.append(path)
    return found


def _relative(source: Path, files: Sequence[Path]) -> list[str]:
    return [path.relative_to(source).as_posix() for path in files]


def _captioned(
    source: Path, files: Sequence[Path], named: Mapping[str, Path], words: bool, read: Read, tell: Tell
) -> list[Captioned]:
    """Pictures with the captions that there are: from tables and files beside them, in part from each.

    Where no picture has any, and no folder has `words`, they are in the names.
    """
    rows = in_tables(source, files, list(named), read, tell)
    texts = beside(list(named), _relative(source, files))
    found = []
    for name, path in named.items():
        if name in rows and rows[name].caption:
            found.append(Captioned(path, rows[name].caption, place=rows[name].table))
            for text in texts[name]:
                tell(str(source / text), f"is not read, since {rows[name].table} says the caption")
        else:
            found.append(_from_beside(source, path, texts[name], read, tell))
    used = {text for some_of in texts.values() for text in some_of}
    said = (
        words or rows or any(one.caption for one in found) or not all(text.lower().endswith(".json") for text in used)
    )
    if said or not found:
        return found
    for text in _relative(source, files):
        if text.lower().endswith((".txt", ".caption")) and text not in used:
            tell(str(source / text), "is called as no picture is, and is not read")
        elif text.lower().endswith(UNREAD) and text not in used and not is_table(PurePosixPath(text).name):
            tell(str(source / text), "is not read; captions stand in metadata.csv, or in .txt files beside pictures")
    with suppress(OSError):
        for name in sorted(os.listdir(source.resolve().parent)):
            if is_table(name):
                tell(str(source.resolve().parent / name), f"is not read, since it lies above {source}; give its folder")
    return [replace(one, caption=spoken(_readable(one.file.stem, tell)), place=NAMES) for one in found]


def _from_beside(source: Path, path: Path, texts: Sequence[str], read: Read, tell: Tell) -> Captioned:
    """A picture with the first caption that there is beside it."""
    one = Captioned(path, "")
    for text in texts:
        ending = PurePosixPath(text).suffix.lower()
        if one.caption:
            if ending != ".json":
                tell(str(source / text), f"is not read, since there is another caption beside {path.name}")
            continue
        said = trimmed(read(_bytes(source / text), str(source / text)))
        said = caption_of_json(said, str(source / text), tell) if ending == ".json" else said
        if "\n" in said:
            tell(str(source / text), "has several lines, which are read as one caption")
        one = replace(one, caption=said, place=f"{ending} files")
    return one


def _bytes(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    raise RecipeError(f"{path}: is no file, or a link to none; remove it")


def without_captions(pictures: Sequence[Path]) -> list[Path]:
    """Of pictures those beside which there is no text for them, and no JSON that has a caption."""
    folders: dict[Path, list[str]] = {}
    for path in pictures:
        folders.setdefault(path.parent, []).append(path.name)
    bare = set()
    with reading(RecipeError) as read, telling() as tell:
        for folder, names in folders.items():
            for name, texts in beside(names, os.listdir(folder)).items():
                plain = any(not text.lower().endswith(".json") for text in texts)
                if not plain and not _from_beside(folder, folder / name, texts, read, tell).caption:
                    bare.add(folder / name)
    return [path for path in pictures if path in bare]


def _readable(name: str, tell: Tell) -> str:
    """A name of a file as text, also where its bytes are no UTF-8."""
    text, _ = decoded(os.fsencode(name))
    if text is None or text != name:
        tell(
            name.encode("utf-8", "replace").decode(), "the name of this file is not UTF-8, and is read as Windows-1252"
        )
    return text or ""


def _repeated(
    pictures: Sequence[Captioned], source: Path, repeats: Mapping[str, tuple[int, str]], tell: Tell
) -> Iterator[Captioned]:
    """Pictures as kohya's folders have them: so often, with the words of the folder for those without a caption."""
    counts = dict.fromkeys(repeats, 0)
    for one in pictures:
        top = one.file.relative_to(source).parts[0]
        counts[top] += 1
        times, words = repeats[top]
        worded = one if one.caption else replace(one, caption=words, place="names of folders")
        yield replace(worded, repeats=times)
    told = ", ".join(f"{top}: {count} pictures x {repeats[top][0]}" for top, count in counts.items())
    tell(str(source), f"pictures are drawn as often as folders say, as by kohya's scripts ({told})")


def _within(one: Captioned, source: Path) -> str:
    """What a picture is called in messages that name its folder."""
    return one.name if one.member or one.file == source else str(one.file.relative_to(source))


def captions_told(pictures: Sequence[Captioned]) -> str:
    """Where captions come from, how many from each place, and the first example."""
    places: dict[str, list[Captioned]] = {}
    for one in pictures:
        places.setdefault(one.place, []).append(one)
    told = [
        f'from {place} ({len(of)} of {len(pictures)}); {of[0].member or of[0].file.name}: "{shown(of[0].caption)}"'
        for place, of in places.items()
    ]
    return "captions: " + "; ".join(told)
