"""Text files of any editor, in UTF-8, UTF-16 or Windows-1252, and JSON with short errors."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from gradina.errors import GradinaError

log = logging.getLogger(__name__)

BYTE_ORDER_MARKS = (  # the longer first, since that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK = "cp1252"  # tried last, since nearly all bytes are valid in it
OTHER_DOCUMENTS = (  # by their first letters: text, but not plain text
    ("{\\rtf", "a document in RTF, expected plain text"),
    ("<!doctype html", "a page in HTML, expected plain text"),
    ("<html", "a page in HTML, expected plain text"),
    ("version https://git-lfs", "a pointer of Git LFS; fetch the file with `git lfs pull`"),
)
NON_LATIN = re.compile(r"[\xa1-\xff]{5}")  # so many in a row are another script, decoded wrongly
CONTROL = re.compile(r"[\0-\x08\x0e-\x1f]")  # in nearly all binary files, and in no text

ReadText = Callable[[bytes, str], str]


@contextmanager
def text_reader(error: type[GradinaError]) -> Iterator[ReadText]:
    """A function from bytes and the name of their file to text with line ends "\\n"; `error` is raised for no text.

    At the end, one warning names the files that were read as Windows-1252, the fallback.
    """
    guessed: list[str] = []

    def read(data: bytes, name: str) -> str:
        text, encoding = decode_text(data)
        if text is None:
            raise error(f"{name} is not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")
        head = text[:32].lstrip().lower()
        for prefix, kind in OTHER_DOCUMENTS:
            if head.startswith(prefix):
                raise error(f"{name} is {kind}")
        if encoding == FALLBACK:
            guessed.append(name)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    yield read
    if guessed:
        files = guessed[0] if len(guessed) == 1 else f"{len(guessed)} files ({guessed[0]}, ...)"
        log.warning("%s: not UTF-8, read as Windows-1252; if letters come out wrong, save as UTF-8", files)


def read_text(path: str | PathLike[str], error: type[GradinaError], what: str = "") -> str:
    """The text of a file; raises `error`, with a message that begins with `what`, where it cannot be read as text."""
    with text_reader(error) as read:
        try:
            data = Path(path).read_bytes()
        except OSError as reason:
            raise error(f"{what}{path} cannot be read ({reason.strerror}); give a text file") from reason
        return read(data, f"{what}{path}")


def decode_text(data: bytes) -> tuple[str | None, str]:
    """Text and encoding: that of the byte-order mark, else UTF-8, else what fits; None where nothing does."""
    marked = [encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)]
    for encoding in marked or ("utf-8", _utf16_without_mark(data), FALLBACK):
        text = _decode_as(data, encoding) if encoding else None
        is_other = encoding == FALLBACK and text and (CONTROL.search(text) or NON_LATIN.search(text))
        if text is not None and not is_other:
            return text, encoding
    return None, encoding


def _decode_as(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _utf16_without_mark(data: bytes) -> str:
    """The byte order of UTF-16 in Latin letters, of which nearly every other byte is NUL; "" for anything else."""
    high, low = data[::2].count(0), data[1::2].count(0)
    if len(data) % 2 or min(high, low) or max(high, low) * 4 < len(data):
        return ""
    return "utf-16-be" if high else "utf-16-le"


def parse_json(text: str, unique_keys: bool = False) -> object:
    """The value of a JSON text; raises ValueError, with a short message, where it is invalid or nested too deep.

    With `unique_keys`, also for an object with a duplicate key, of which Python would keep the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys if unique_keys else None)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"{error.msg}, {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def json_or_none(text: str) -> object:
    """The value of a JSON text; None where it is invalid."""
    with suppress(ValueError):
        return parse_json(text)
    return None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"it has {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return dict(pairs)
