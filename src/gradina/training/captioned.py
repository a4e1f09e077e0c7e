"""A picture of one's own with what is said of it: the form in which captions stand in files, and what is no caption."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradina.errors import RecipeError
from gradina.texts import parsed

log = logging.getLogger(__name__)

CAPTION_KEYS = ("text", "caption", "prompt")  # what captions are called in tables of metadata and in JSON
MISSING = ("nan", "null", "none", "n/a", "#n/a", "na", "<na>")  # a value that is not there, as text
GIVEN_WORDS = "the words given"  # the place of a caption that is not in the folder
NAMED = 3  # files in an error
SHOWN = 60  # letters of a caption in a message
LONGEST = 256  # letters of a name there

# Of names that cameras, telephones and programs give: words, those that come behind them, and single letters.
GIVEN = re.compile(
    "img|imgp|imgs|dsc|dsc[nfix]|dcim|mg|cimg|pict|pic|picture|photo|foto|bild|images?|scan|pxl|mvimg|vid|video|sam|go?pr"
    "|g[phx]|dji|hpim|kif|stp|snap|sdc|mov|fb|received|signal|screenshot|screencap|screen|whatsapp|telegram|snapchat"
    "|capture|untitled|unnamed|download|file|frame|comfyui|bildschirmfoto|fullsizerender"
)
LETTERS = "prlscd"  # before four digits or more: P1010001, R0001234
BEHIND = re.compile(
    "shot|image|photo|img|e|copy|edited|edit|hdr|pano|burst|cover|portrait|night|mp|wa|at|from|on|um|am|pm|d|écran|à|top"
    "|crop|cropped|resized|scaled|orig|original"
)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Tell(Protocol):
    """Notes what is odd about a file; see `telling`."""

    def __call__(self, name: str, what: str) -> None: ...


@contextmanager
def telling() -> Iterator[Tell]:
    """A function that collects what is odd; each kind of it is one note at the end, with the first and a count."""
    odd: dict[str, list[str]] = {}
    yield lambda name, what: odd.setdefault(what, []).append(name)
    for what, names in odd.items():
        more = f" and {len(names) - 1} more" if names[1:] else ""
        log.warning("%s%s: %s", names[0], more, what)


@dataclass(frozen=True)
class Captioned:
    """A picture and its caption: in a file, or in one of a shard."""

    file: Path
    caption: str
    member: str = ""
    place: str = ""  # where its caption was found, in words
    repeats: int = 1  # times as often it is drawn
    span: tuple[Path, int, int] | None = None  # of a member: in which file its bytes lie, from where, and how many

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.file}/{self.member}" if self.member else str(self.file)

    def data(self) -> bytes:
        """The bytes of the picture."""
        return self.file.read_bytes() if self.span is None else spanned(*self.span)


def spanned(file: Path, start: int, count: int) -> bytes:
    """Some of the bytes of a file."""
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(count)


def caption_in(row: Mapping[str, object], where: str, tell: Tell) -> str:
    """The caption that a row of a table or a JSON object holds, "" for none; RecipeError for what is no text."""
    there = [key for key in CAPTION_KEYS if row.get(key) not in (None, "", [])]
    key = there[0] if there else ""
    said = row.get(key, "")
    if any(row[other] != said for other in there[1:]):
        tell(where, f"has {' and '.join(there)}, of which {key} is read")
    if isinstance(said, list):
        tell(where, f"{key} is a list, of which the first is read")
        said = next((each for each in said if each not in (None, "")), "")
    if not isinstance(said, str):
        raise RecipeError(f"{where}: {key} is {shown(repr(said))}, expected a text")
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{where}: {key} is no text in Unicode ({error.reason})") from error
    said = said.strip()
    if said.lower() in MISSING:
        tell(where, f"{key} is {said}, as programs write what is missing, and no caption")
        return ""
    return said


def caption_of_json(text: str, where: str, tell: Tell) -> str:
    """The caption in the JSON beside a picture, as img2dataset writes it; "" where it speaks of other things."""
    try:
        row = parsed(text) if text.strip() else None
    except ValueError as error:
        raise RecipeError(f"{where}: is no JSON ({error})") from error
    return caption_in(row, where, tell) if isinstance(row, dict) else ""


def spoken(stem: str) -> str:
    """The name of a file as a caption: "a_red-boat (2)" is "a red boat"; what a camera or a number says is nothing."""
    if given(stem):
        return ""
    words = re.sub(r"[\s_-]+", " ", re.sub(r"\(\d+\)", "", stem)).strip()
    return re.sub(r"(^| )\d+$", "", words).strip()


def given(stem: str) -> bool:
    """Whether a name is one that a camera or a program gives: IMG_1234, PXL_20230101_123456789, a number, a hash."""
    parts = [part.lower() for part in re.split(r"[\W_]+", UUID.sub("0000000", stem)) if part]
    kinds = {_kind(part) for part in parts}
    return kinds <= {"number", "long", "given", "behind"} and (
        kinds <= {"number", "long"} or "long" in kinds or ("given" in kinds and any(map(str.isdigit, stem)))
    )


def _kind(part: str) -> str:
    """What a part of such a name is; "word" for one of anybody's."""
    word = part.rstrip("0123456789")
    if not word or re.fullmatch(r"(?=.*\d)[0-9a-f]{8,}", part):
        return "long" if len(part) >= 6 else "number"  # of a date, or a hash
    if GIVEN.fullmatch(word) or (word in LETTERS and len(part) >= 5):
        return "given"
    return "behind" if BEHIND.fullmatch(word) else "word"


def some(names: Sequence[str]) -> str:
    """The first of some names, cut if they are longer than any file's."""
    return ", ".join(shown(name, LONGEST) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def shown(text: str, room: int = SHOWN) -> str:
    """A text cut to what a message has room for."""
    return text if len(text) <= room else text[: room - 3] + "..."
