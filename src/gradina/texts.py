"""Texts that people write, whatever their editor made of them: bytes in, text out."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from gradina.errors import GradinaError

log = logging.getLogger(__name__)

MARKS = (  # byte-order marks, the longer first: that of UTF-32 begins as that of UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GUESS = "cp1252"  # Windows in Western Europe and America; tried last, since nearly all bytes mean something in it
DOCUMENTS = (  # what begins so is text of another kind, whose marks nobody means
    ("{\\rtf", "a document in RTF, expected plain text"),
    ("<!doctype html", "a page in HTML, expected plain text"),
    ("<html", "a page in HTML, expected plain text"),
    ("version https://git-lfs", "a pointer of Git LFS; fetch the file with `git lfs pull`"),
)
FOREIGN = re.compile(r"[\xa1-\xff]{5}")  # so many in a row are letters of another script
CONTROL = re.compile(r"[\0-\x08\x0e-\x1f]")  # what no one-byte text has, and nearly all other files have

Read = Callable[[bytes, str], str]


@contextmanager
def reading(error: type[GradinaError]) -> Iterator[Read]:
    """A reader, from bytes and the name of their file to text with line ends "\\n"; `error` is raised for no text.

    At the end, one note says which files were read as Windows-1252, for want of anything better.
    """
    guessed: list[str] = []

    def read(data: bytes, name: str) -> str:
        text, encoding = decoded(data)
        if text is None:
            raise error(f"{name} is no text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")
        head = text[:32].lstrip().lower()
        for begun, kind in DOCUMENTS:
            if head.startswith(begun):
                raise error(f"{name} is {kind}")
        if encoding == GUESS:
            guessed.append(name)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    yield read
    if guessed:
        files = guessed[0] if len(guessed) == 1 else f"{len(guessed)} files ({guessed[0]}, ...)"
        log.warning("%s: not UTF-8, read as Windows-1252; if letters come out wrong, save as UTF-8", files)


def read_text(path: str | PathLike[str], error: type[GradinaError], what: str = "") -> str:
    """The text of a file; raises `error`, whose message begins with `what`, where there is none, or it is no text."""
    with reading(error) as read:
        try:
            data = Path(path).read_bytes()
        except OSError as reason:
            raise error(f"{what}{path} cannot be read ({reason.strerror}); give a text file") from reason
        return read(data, f"{what}{path}")


def decoded(data: bytes) -> tuple[str | None, str]:
    """Text and encoding: as the byte-order mark says, else UTF-8, else what fits; None where nothing does."""
    marked = [encoding for mark, encoding in MARKS if data.startswith(mark)]
    if marked:
        return next(((text, name) for name in marked if (text := _as(data, name)) is not None), (None, marked[0]))
    text, encoding = _as(data, "utf-8"), "utf-8"
    if text is None and (wide := _unmarked(data)):
        text, encoding = _as(data, wide), wide
    if text is None:
        text, encoding = _as(data, GUESS), GUESS
        text = None if text is None or CONTROL.search(text) or FOREIGN.search(text) else text
    return text, encoding


def _as(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _unmarked(data: bytes) -> str:
    """UTF-16 without a mark, where every other byte, or nearly so, is NUL, as in most languages with Latin letters."""
    high, low = data[::2].count(0), data[1::2].count(0)
    if len(data) % 2 or min(high, low) or max(high, low) * 4 < len(data):
        return ""
    return "utf-16-be" if high else "utf-16-le"


def parsed(text: str, once: bool = False) -> object:
    """What a JSON text says; raises ValueError, in few words, for what is none or is nested too deep.

    With `once`, also for an object that has a key twice, of which Python would keep the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_once if once else None)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"{error.msg}, {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    double = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if double is not None:
        raise ValueError(f"it has {double!r} twice")
    return dict(pairs)
