"""Captions in sidecar files: dog.txt, dog.caption or dog.json of dog.png, in folders and in shards alike."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from gradina.errors import RecipeError
from gradina.texts import ReadText, text_reader
from gradina.training.data.captioned_image import CaptionedImage, Note, caption_from_json, collected_notes, stripped

SIDECAR_SUFFIXES = (".txt", ".caption", ".json")  # by priority
CAPTION_PARTS = ("", "caption", "text", "prompt")  # between the key of a sample in a shard and the suffix, by priority

nfc = partial(unicodedata.normalize, "NFC")  # a name in composed Unicode, as all systems but macOS write it


class NameIndex:
    """Finds a name as it is written, else in composed Unicode, else in any capitals, where exactly one matches."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = dict.fromkeys(names)
        self.folded: dict[str, list[str]] = {}
        for name in self.names:
            for form in {nfc(name), nfc(name).casefold()}:
                self.folded.setdefault(form, []).append(name)

    def __call__(self, name: str) -> str | None:
        if name in self.names:
            return name
        for form in (nfc(name), nfc(name).casefold()):
            found = self.folded.get(form, [])
            if len(found) == 1:
                return found[0]
        return None


def stem(name: str) -> str:
    """A path without the suffix of its last part."""
    return name.removesuffix(PurePosixPath(name).suffix)


def suffix(name: str) -> str:
    """The suffix of a path in small letters."""
    return PurePosixPath(name).suffix.lower()


def sample_key(name: str) -> str:
    """The key of a sample in webdataset: the path up to the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def sidecars(pictures: Sequence[str], others: Iterable[str], keyed: bool = False) -> Mapping[str, list[str]]:
    """For each picture the files that may hold its caption, by priority.

    dog.png has dog.txt, or dog.png.txt, in any capitals; with `keyed`, all files of a sample belong together by its
    key, so that 000.input.png has 000.caption.txt, too.
    """
    texts = [name for name in others if suffix(name) in SIDECAR_SUFFIXES]
    find, taken = NameIndex(texts), {nfc(stem(name)) for name in pictures}
    samples: dict[str, list[str]] = {}
    for name in texts if keyed else ():
        samples.setdefault(nfc(sample_key(name)), []).append(name)
    found = {}
    for name in pictures:
        matches = [(form, find(form + ending)) for ending in SIDECAR_SUFFIXES for form in (stem(name), name)]
        own = [text for form, text in matches if text and not _is_of_another(text, form, taken)]
        found[name] = list(dict.fromkeys(own + sorted(samples.get(nfc(sample_key(name)), []), key=_rank)))
    return found


def _is_of_another(text: str, form: str, taken: set[str]) -> bool:
    """Whether a text that differs in capitals has exactly the name of another picture."""
    return nfc(stem(text)) != nfc(form) and nfc(stem(text)) in taken


def _rank(name: str) -> tuple[int, int, str]:
    part = stem(name)[len(sample_key(name).removeprefix("/")) :].strip(".").lower()
    part_rank = CAPTION_PARTS.index(part) if part in CAPTION_PARTS else len(CAPTION_PARTS)
    return SIDECAR_SUFFIXES.index(suffix(name)), part_rank, name


def first_caption(
    names: Sequence[str], where: Callable[[str], str], load: Callable[[str], bytes], read: ReadText, note: Note
) -> tuple[str, str]:
    """The first caption in the sidecars `names` and its file; "" and the last file where all are empty.

    Raises RecipeError, which names the file as `where` says, for what is no text or no JSON.
    """
    caption = name = ""
    for name in names:
        caption = stripped(read(load(name), where(name)))
        if suffix(name) == ".json":
            caption = caption_from_json(caption, where(name), note)
        if caption:
            break
    return caption, name


def captioned_by_sidecar(folder: Path, file: Path, names: Sequence[str], read: ReadText, note: Note) -> CaptionedImage:
    """A picture with the caption in its sidecars, whose paths are those in the folder; raises RecipeError."""
    caption, name = first_caption(names, lambda name: str(folder / name), lambda name: _load(folder / name), read, note)
    if "\n" in caption:
        note(str(folder / name), "has several lines, which are read as one caption")
    for other in names[names.index(name) + 1 :] if name else ():
        if suffix(other) != ".json":
            note(str(folder / other), f"is not read, since there is another caption beside {file.name}")
    return CaptionedImage(file, caption, source=f"{suffix(name)} files" if name else "")


def _load(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    raise RecipeError(f"{path}: is not a file, or a broken link; remove it")


def without_captions(pictures: Sequence[Path]) -> list[Path]:
    """Those pictures that have no text file, and no JSON with a caption, in their folder."""
    folders: dict[Path, list[str]] = {}
    for path in pictures:
        folders.setdefault(path.parent, []).append(path.name)
    bare = set()
    with text_reader(RecipeError) as read, collected_notes() as note:
        for folder, names in folders.items():
            for name, texts in sidecars(names, os.listdir(folder)).items():
                has_text = any(suffix(text) != ".json" for text in texts)
                if not has_text and not captioned_by_sidecar(folder, folder / name, texts, read, note).caption:
                    bare.add(folder / name)
    return [path for path in pictures if path in bare]
