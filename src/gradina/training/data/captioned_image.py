"""A picture with its caption, the form that captions have in table rows and JSON, and collected notes on odd files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradina.errors import RecipeError
from gradina.texts import parse_json

log = logging.getLogger(__name__)

CAPTION_KEYS = ("text", "caption", "prompt")  # of rows in metadata tables and of JSON
DESCRIPTION_KEYS = ("tags", "tag_string", "description", "title", "keywords", "labels")  # similar, but not read
MISSING_VALUES = ("nan", "null", "none", "n/a", "#n/a", "na", "<na>")
INVISIBLE = "\u200b\u2060\ufeff\x1a"
GIVEN_CAPTION = "the given caption"  # the source of a caption that is an argument
MAX_NAMES = 3  # files in a message
MAX_CAPTION = 60  # letters of a caption in a message
MAX_NAME = 256  # letters of a name there

Note = Callable[[str, str], object]  # notes, of a file, what is odd about it; see `collected_notes`


@contextmanager
def collected_notes() -> Iterator[Note]:
    """A function that collects notes; each kind of note is one warning at the end, with its first file and a count."""
    notes: dict[str, list[str]] = {}
    yield lambda name, what: notes.setdefault(what, []).append(name)
    for what, names in notes.items():
        more = f" and {len(names) - 1} more" if names[1:] else ""
        log.warning("%s%s: %s", names[0], more, what)


@dataclass(frozen=True)
class CaptionedImage:
    """A picture, as a file or as a member of a shard, and its caption."""

    file: Path
    caption: str
    member: str = ""
    source: str = ""  # where its caption was found, for messages
    repeats: int = 1  # how many times as often it is drawn
    span: tuple[Path, int, int] | None = None  # of a member: the file that holds its bytes, their start, their count

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.file}/{self.member}" if self.member else str(self.file)

    def data(self) -> bytes:
        """The bytes of the picture."""
        return self.file.read_bytes() if self.span is None else read_span(*self.span)


def read_span(file: Path, start: int, count: int) -> bytes:
    """Some of the bytes of a file."""
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(count)


def stripped(text: str) -> str:
    """A text without spaces and invisible characters at its ends: zero-width spaces, byte-order marks, DOS's Ctrl-Z."""
    before = None
    while text != before:
        before, text = text, text.strip().strip(INVISIBLE)
    return text


def caption_from_row(row: Mapping[str, object], where: str, note: Note) -> str:
    """The caption that a row of a table or a JSON object holds, "" for none; RecipeError for what is no text."""
    keys = [key for key in CAPTION_KEYS if row.get(key) not in (None, "", [])]
    key = keys[0] if keys else ""
    value = row.get(key, "")
    if any(row[other] != value for other in keys[1:]):
        note(where, f"has {' and '.join(keys)}, of which {key} is read")
    if isinstance(value, list):
        note(where, f"{key} is a list, of which the first is read")
        value = next((each for each in value if each not in (None, "")), "")
    if not isinstance(value, str):
        raise RecipeError(f"{where}: {key} is {shortened(repr(value))}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{where}: {key} is not text in Unicode ({error.reason})") from error
    caption = stripped(value)
    if caption.lower() in MISSING_VALUES:
        note(where, f"{key} is {caption}, which marks a missing value, and is no caption")
        return ""
    return caption


def caption_from_json(text: str, where: str, note: Note) -> str:
    """The caption in a picture's JSON file, as img2dataset writes it; "" where it holds none; raises RecipeError."""
    try:
        row = parse_json(text) if text.strip() else None
    except ValueError as error:
        raise RecipeError(f"{where}: is not JSON ({error})") from error
    if not isinstance(row, dict):
        return ""
    caption = caption_from_row(row, where, note)
    others = [key for key in DESCRIPTION_KEYS if row.get(key)]
    if others and not caption:
        note(where, f"has no caption, expected {CAPTION_KEYS[0]} or {CAPTION_KEYS[1]} (it has {first_few(others)})")
    return caption


def first_few(names: Sequence[str]) -> str:
    """The first of some names for a message, shortened if they are longer than any file's."""
    return ", ".join(shortened(name, MAX_NAME) for name in names[:MAX_NAMES]) + (", ..." if names[MAX_NAMES:] else "")


def shortened(text: str, length: int = MAX_CAPTION) -> str:
    """A text cut to a length that fits a message."""
    return text if len(text) <= length else text[: length - 3] + "..."
