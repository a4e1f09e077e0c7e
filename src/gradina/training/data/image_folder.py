"""The pictures of a folder with their captions, in the layouts of others, and how often each is drawn.

Captions stand in metadata tables, in sidecar files, in the names of kohya's folders, or else in file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gradina.errors import PictureError, RecipeError
from gradina.images.folder import SUFFIXES, files_in, pictures_in
from gradina.texts import ReadText, decode_text, text_reader
from gradina.training.data.captioned_image import (
    GIVEN_CAPTION,
    CaptionedImage,
    Note,
    collected_notes,
    first_few,
    shortened,
)
from gradina.training.data.filename_captions import caption_from_filename
from gradina.training.data.metadata_tables import is_table, read_tables
from gradina.training.data.shards import ARCHIVES, SHARD, read_shard
from gradina.training.data.sidecars import captioned_by_sidecar, sidecars

FILE_NAMES = "names of files"
MASK = re.compile(r"(.*)-(mask|cond)label")  # the files that OneTrainer keeps with a picture
UNREAD = (  # suffixes of other files that may hold captions
    ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods", ".arrow", ".yaml", ".yml", ".toml", ".xml",
    ".xmp", ".tag", ".tags", ".cap", ".prompt", ".rtf", ".docx", ".html",
)  # fmt: skip
PLACEHOLDER = re.compile(r"\[(trigger|name|filewords)\]")
ADVICE = "put each into a .txt of its picture's name, or let `gradina caption FOLDER --write` do it"
REPEATS = re.compile(r"(\d+)_(.*\S.*)")
MAX_REPEATS = 1000  # a larger number is a year, a date or an index


def read_image_folder(
    source: str | Path, caption: str | None = None, out: str | Path | None = None
) -> list[CaptionedImage]:
    """The pictures of a folder, of shards in it or of one shard; `caption` is that of all pictures.

    Pictures drawn into `out` are left out. Warnings say what is odd. Raises RecipeError, naming files and lines, where
    there are no pictures, where captions are missing, or where files cannot be read.
    """
    source = Path(source)
    with text_reader(RecipeError) as read, collected_notes() as note:
        if source.is_file() and SHARD.fullmatch(source.name):
            found = read_shard(source, caption, read, note)
        elif source.is_file():
            raise RecipeError(f"{source}: is a file, expected a folder of pictures or a .tar shard")
        elif not source.is_dir():
            raise RecipeError(f"{source}: there is no such folder of pictures")
        else:
            found = _read_folder(source, caption, _inside(source, out), read, note)
        for image in found:
            if match := PLACEHOLDER.search(image.caption):
                note(image.name, f"{match[0]} in its caption is not replaced; write the words that it stands for")
    if not found:
        raise RecipeError(f"{source}: holds no pictures (expected {', '.join(SUFFIXES[:4])}, ... or .tar shards)")
    if missing := [image for image in found if not image.caption]:
        raise RecipeError(f"{source}: {_missing_captions(source, missing, len(found))}")
    return found


def _missing_captions(source: Path, missing: Sequence[CaptionedImage], count: int) -> str:
    names = [one.name if one.member or one.file == source else str(one.file.relative_to(source)) for one in missing]
    first = missing[0].source
    why = "; numbers and names that cameras give are none" if first == FILE_NAMES else ""
    above = f"; {source.name} names the caption where its parent folder is given" if has_repeats(source.name) else ""
    if first.startswith("."):
        above += f"; {first} that are empty have to be removed before that"
    return f"captions are missing for {len(missing)} of {count} pictures ({first_few(names)}){why}; {ADVICE}{above}"


def _inside(source: Path, out: str | Path | None) -> Path | None:
    """The path of `out` inside a folder, if it is; RecipeError where it is that folder."""
    if out is None or not Path(out).resolve().is_relative_to(source.resolve()):
        return None
    if Path(out).resolve() == source.resolve():
        raise RecipeError(f"{out}: is the folder of training pictures; choose another --out folder")
    return source / Path(out).resolve().relative_to(source.resolve())


def _read_folder(
    source: Path, caption: str | None, out: Path | None, read: ReadText, note: Note
) -> list[CaptionedImage]:
    every = files_in(source)
    files = [path for path in every if out is None or not path.is_relative_to(out)]
    shards = [path for path in files if SHARD.fullmatch(path.name) and path.is_file()]
    for path in files:
        known = shards or path.with_suffix("").is_dir()  # img2dataset's .parquet repeats what the folder holds
        if path.suffix.lower() in (ARCHIVES if known else (*ARCHIVES, ".parquet", ".arrow", ".tfrecord")):
            note(str(path), "is not read; unpack it first")
    pictures = _without_masks(_pictures(source, every, out, bool(shards), note), note)
    by_name = dict(zip(_relative(source, pictures), pictures, strict=True))
    members = [image for path in shards for image in read_shard(path, caption, read, note)]
    names = [*by_name, *_relative(source, [image.file for image in members])]
    repeats = folder_repeats(str(source), names, note)
    if caption is None:
        loose = _captioned(source, files, by_name, bool(repeats), read, note)
    else:
        loose = [CaptionedImage(path, caption, source=GIVEN_CAPTION) for path in pictures]
        found = sidecars(list(by_name), _relative(source, files))
        texts = {source / text for texts in found.values() for text in texts}
        for path in files:
            if path in texts or is_table(path.name):
                note(str(path), f'is not read, since "{shortened(caption)}" is the caption of all pictures')
    return list(_repeated([*loose, *members], source, repeats, note)) if repeats else [*loose, *members]


def _pictures(source: Path, files: list[Path], out: Path | None, optional: bool, note: Note) -> list[Path]:
    try:
        found = pictures_in(source, files)
    except PictureError as error:
        if optional:
            return []
        raise RecipeError(str(error)) from error
    if out is not None and any(path.is_relative_to(out) for path in found):
        note(str(out), "is inside the folder of training pictures; the pictures in it are left out")
    return [path for path in found if out is None or not path.is_relative_to(out)]


def _without_masks(pictures: Sequence[Path], note: Note) -> list[Path]:
    """Without the masks that OneTrainer keeps with its pictures."""
    stems, found = {path.parent / path.stem for path in pictures}, []
    for path in pictures:
        match = MASK.fullmatch(path.stem)
        if match and path.parent / match[1] in stems:
            note(str(path), "is the mask of another picture, and is left out")
        else:
            found.append(path)
    return found


def _relative(source: Path, files: Sequence[Path]) -> list[str]:
    return [path.relative_to(source).as_posix() for path in files]


def _captioned(
    source: Path, files: Sequence[Path], by_name: Mapping[str, Path], folder_words: bool, read: ReadText, note: Note
) -> list[CaptionedImage]:
    """The pictures with the captions of tables and sidecars; with those of file names where there is no other."""
    rows = read_tables(source, files, list(by_name), read, note)
    texts = sidecars(list(by_name), _relative(source, files))
    found = []
    for name, path in by_name.items():
        if name in rows and rows[name].caption:
            found.append(CaptionedImage(path, rows[name].caption, source=rows[name].table))
            for text in texts[name]:
                note(str(source / text), f"is not read, since {rows[name].table} has the caption")
        else:
            found.append(captioned_by_sidecar(source, path, texts[name], read, note))
    used = {text for names in texts.values() for text in names}
    has_captions = folder_words or rows or any(image.caption for image in found)
    if not found or has_captions or not all(text.lower().endswith(".json") for text in used):
        return found
    _note_unread(source, [text for text in _relative(source, files) if text not in used], note)
    return [
        replace(image, caption=caption_from_filename(_decoded_name(image.file.stem, note)), source=FILE_NAMES)
        for image in found
    ]


def _note_unread(source: Path, names: Sequence[str], note: Note) -> None:
    """Notes other files that may hold captions, in a folder where no picture has one."""
    for name in names:
        if name.lower().endswith((".txt", ".caption")):
            note(str(source / name), "has the name of no picture, and is not read")
        elif name.lower().endswith(UNREAD) and not is_table(PurePosixPath(name).name):
            note(str(source / name), "is not read; captions are read from metadata.csv and .txt files")
    above = source.resolve().parent
    with suppress(OSError):
        for name in sorted(os.listdir(above)):
            if is_table(name):
                note(str(above / name), f"is not read, since it lies above {source}; give its folder")


def _decoded_name(name: str, note: Note) -> str:
    """A file name as text, also where its bytes are not UTF-8."""
    text, _ = decode_text(os.fsencode(name))
    if text is None or text != name:
        printable = name.encode("utf-8", "replace").decode()
        note(printable, "the name of this file is not UTF-8, and is read as Windows-1252")
    return text or ""


def folder_repeats(source: str, pictures: Sequence[str], note: Note) -> dict[str, tuple[int, str]]:
    """Repeats and words of the folders just below `source`, where all pictures lie in folders such as kohya's.

    Those in `10_sks dog` are drawn ten times as often, as "sks dog". A note says where only some lie in such folders.
    """
    tops = dict.fromkeys(PurePosixPath(name).parts[0] for name in pictures if "/" in name)
    loose = any("/" not in name for name in pictures)
    found = {top: (int(match[1]), match[2].strip()) for top in tops if (match := REPEATS.fullmatch(top))}
    if found and not loose and len(found) == len(tops) and all(has_repeats(top) for top in tops):
        return found
    below = (part for name in pictures for part in PurePosixPath(name).parts[:-1] if has_repeats(part))
    for folder in dict.fromkeys(below):
        why = f"not every picture lies in such a folder just below {source}"
        note(folder, f"is not read as a number of repeats and words, as kohya's scripts read it: {why}")
    return {}


def has_repeats(folder: str) -> bool:
    """Whether a name begins with a number of repeats: 10_sks dog; but not 2023_holiday, 01_summer or 0_none."""
    match = REPEATS.fullmatch(folder)
    return match is not None and not folder.startswith("0") and len(match[1]) <= 4 and int(match[1]) <= MAX_REPEATS


def _repeated(
    pictures: Sequence[CaptionedImage], source: Path, repeats: Mapping[str, tuple[int, str]], note: Note
) -> Iterator[CaptionedImage]:
    """Pictures with the repeats of their folders, and its words where they have no caption."""
    counts = dict.fromkeys(repeats, 0)
    for image in pictures:
        top = image.file.relative_to(source).parts[0]
        counts[top] += 1
        times, words = repeats[top]
        worded = image if image.caption else replace(image, caption=words, source="names of folders")
        yield replace(worded, repeats=times)
    summary = ", ".join(f"{top}: {count} pictures x {repeats[top][0]}" for top, count in counts.items())
    note(str(source), f"pictures are repeated as their folders say, as in kohya's scripts ({summary})")


def caption_summary(pictures: Sequence[CaptionedImage]) -> str:
    """Where captions come from, how many from each source, and the first of each."""
    sources: dict[str, list[CaptionedImage]] = {}
    for image in pictures:
        sources.setdefault(image.source, []).append(image)
    parts = [
        f'from {source} ({len(of)} of {len(pictures)}); {of[0].member or of[0].file.name}: "{shortened(of[0].caption)}"'
        for source, of in sources.items()
    ]
    return "captions: " + "; ".join(parts)
