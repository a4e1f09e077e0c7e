"""Which file belongs to which picture, by their names alone: of the files in folders and of the members of shards."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

ENDINGS = (".txt", ".caption", ".json")  # of files that hold the caption of the picture beside them, the first first
CALLED = ("", "caption", "text", "prompt")  # what stands behind the key of a caption in a shard, at best


class Names:
    """Finds a name as it is written, else in composed Unicode, else whatever its capitals, where just one is meant."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = dict.fromkeys(names)
        self.alike: dict[str, list[str]] = {}
        for name in self.names:
            for form in {composed(name), composed(name).casefold()}:
                self.alike.setdefault(form, []).append(name)

    def __call__(self, name: str) -> str | None:
        if name in self.names:
            return name
        for form in (composed(name), composed(name).casefold()):
            found = self.alike.get(form, [])
            if len(found) == 1:
                return found[0]
        return None


def composed(name: str) -> str:
    """A name with its accents on its letters, as all but macOS write it."""
    return unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """A path without the ending of its last part."""
    return name.removesuffix(PurePosixPath(name).suffix)


def key(name: str) -> str:
    """What webdataset calls the files of one sample: the path to the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def beside(pictures: Sequence[str], others: Iterable[str], keyed: bool = False) -> Mapping[str, list[str]]:
    """For each picture the files that may hold its caption, those first that are to be asked first.

    They are called as it is but for their ending (dog.txt for dog.png), or have one more (dog.png.txt), in capitals
    or not; where all of a sample begins with its key (`keyed`), 000.caption.txt is that of 000.input.png, too.
    """
    texts = [name for name in others if PurePosixPath(name).suffix.lower() in ENDINGS]
    find, taken = Names(texts), {composed(stem(name)) for name in pictures}
    samples: dict[str, list[str]] = {}
    for name in texts if keyed else ():
        samples.setdefault(composed(key(name)), []).append(name)
    found = {}
    for name in pictures:
        wanted = [(form, find(form + ending)) for ending in ENDINGS for form in (stem(name), name)]
        ours = [text for form, text in wanted if text and not _anothers(text, form, taken)]
        found[name] = list(dict.fromkeys(ours + sorted(samples.get(composed(key(name)), []), key=_rank)))
    return found


def _anothers(text: str, form: str, taken: set[str]) -> bool:
    """Whether a text that differs in capitals is called just as another picture is."""
    return composed(stem(text)) != composed(form) and composed(stem(text)) in taken


def _rank(name: str) -> tuple[int, int, str]:
    ending = PurePosixPath(name).suffix.lower()
    called = stem(name)[len(key(name).removeprefix("/")) :].strip(".").lower()
    return ENDINGS.index(ending), CALLED.index(called) if called in CALLED else len(CALLED), name
