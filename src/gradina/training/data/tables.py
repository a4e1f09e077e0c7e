"""Captions in tables: metadata.jsonl and .csv, as the datasets library has them, and the JSON of kohya's scripts."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradina.errors import RecipeError
from gradina.images.open import SUFFIXES
from gradina.texts import Read, parsed
from gradina.training.data.captioned import CAPTION_KEYS, Tell, caption_in, shown, some
from gradina.training.data.sidecar import Names

FILE_KEYS = (
    "file_name",
    "image_file_name",
    "filename",
    "file",
    "image_file",
    "image",
    "image_path",
    "file_path",
    "path",
)
Rows = Iterator[tuple[str, Mapping[str, object]]]  # where each stands, and what it says


@dataclass(frozen=True)
class Row:
    """What a table says of a picture, and where."""

    where: str
    caption: str
    table: str


def in_tables(source: Path, files: Sequence[Path], pictures: Sequence[str], read: Read, tell: Tell) -> dict[str, Row]:
    """What the tables among the files of a folder say of its pictures, which are named by their paths in it.

    Raises RecipeError, naming the line, for rows that are odd, and for pictures that are not there.
    """
    find, found, gone = Names(pictures), dict[str, Row](), []
    for table, reader in _tables(files, tell):
        rows = 0
        for where, row in reader(read(table.read_bytes(), str(table)), str(table)):
            rows += 1
            if not set(CAPTION_KEYS) & set(row):
                tell(where, f"has no caption, expected {CAPTION_KEYS[0]} (it has {some(list(row))})")
            name = _file_name(row, where)
            picture = _found(name, source, table.parent, find, where, tell)
            if picture is None:
                gone.append(name)
            elif picture:
                said = Row(where, caption_in(row, where, tell), table.relative_to(source).as_posix())
                _admit(found, picture, said, tell)
        if not rows and reader is _json:
            tell(str(table), "has no captions in a form that is known, and is not read")
        elif not rows:
            raise RecipeError(f"{table}: has no rows; expected file_name and {CAPTION_KEYS[0]} in each")
        if gone:
            told = f"{len(gone)} pictures with a caption are not there ({some(gone)})"
            raise RecipeError(f"{table}: {told}; give their paths from {table.parent} on")
    return found


def _tables(files: Sequence[Path], tell: Tell) -> Iterator[tuple[Path, Callable[[str, str], Rows]]]:
    """The table of each folder, and how it is read; others beside it are told."""
    folders: dict[Path, list[tuple[int, str, Path]]] = {}
    for path in files:
        rank = _rank(path.name)
        if rank is not None:  # kohya's scripts call each table by what it has more: the last name has all
            folders.setdefault(path.parent, []).append((rank, "" if rank < len(TABLES) - 1 else path.name, path))
    for there in folders.values():
        best = min(rank for rank, _, _ in there)
        table = max(one for one in there if one[0] == best)[2]
        for _, _, other in there:
            if other != table:
                tell(str(other), f"is not read, since {table.name} is there")
        if table.name.lower().endswith("json1"):
            tell(str(table), 'ends with the digit one, and is read as ".jsonl"')
        yield table, TABLES[best][1]


def _rank(name: str) -> int | None:
    return next((rank for rank, (pattern, _) in enumerate(TABLES) if re.fullmatch(pattern, name.lower())), None)


def is_table(name: str) -> bool:
    """Whether a file is called as tables of captions are."""
    return _rank(name) is not None


def _json_lines(text: str, name: str) -> Rows:
    """An object in each line; or one list of them, whatever the file is called."""
    if text.lstrip("\ufeff \t\n").startswith("[") and _is_json(text, list):
        text = text if not (rows := list(_json(text, name))) else ""
        yield from rows
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip("\ufeff \t"):
            where = f"{name}: line {number}"
            try:
                row = parsed(line.strip("\ufeff \t"), once=True)
            except ValueError as error:
                raise RecipeError(f"{where} is no JSON ({error})") from error
            if not isinstance(row, dict):
                got = shown(line.strip())
                raise RecipeError(f'{where}: got {got}, expected {{"file_name": "a.png", "text": "what it shows"}}')
            yield where, row


def _json(text: str, name: str) -> Rows:
    """A list of rows, or one; or an object from paths to captions and tags, as kohya's scripts write it.

    Others say nothing. What is no JSON, but has an object in its first line, is read as lines.
    """
    try:
        content = parsed(text, once=True)
    except ValueError as error:
        if not _is_json(text.strip("\ufeff \t\n").partition("\n")[0], dict):
            raise RecipeError(f"{name}: is no JSON ({error})") from error
        yield from _json_lines(text, name)
        return
    if isinstance(content, dict) and set(FILE_KEYS) & set(content) and set(CAPTION_KEYS) & set(content):
        content = [content]
    if isinstance(content, list) and any(isinstance(row, dict) and set(FILE_KEYS) & set(row) for row in content):
        for number, row in enumerate(content, 1):
            if not isinstance(row, dict):
                raise RecipeError(f"{name}: row {number}: got {shown(repr(row))}, expected an object")
            yield f"{name}: row {number}", row
    rows = content.items() if isinstance(content, dict) else ()
    if any(isinstance(row, dict) and {"caption", "tags"} & set(row) for _, row in rows):
        for path, row in rows:
            said = [row.get(part) for part in ("caption", "tags")] if isinstance(row, dict) else []
            where = f"{name}: {shown(path)}"
            yield where, {"file_name": path, "caption": ", ".join(text for text in map(_said(where), said) if text)}


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(parsed(text), kind)
    except ValueError:
        return False


def _said(where: str) -> Callable[[object], str]:
    """A reader of the caption or the tags that kohya's scripts know of a picture: a text, or a list of them."""

    def read(said: object) -> str:
        parts = said if isinstance(said, list) else [] if said is None else [said]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise RecipeError(f"{where}: got {shown(repr(said))}, expected a text")
        return ", ".join(filter(None, texts))

    return read


def _separated(text: str, name: str) -> Rows:
    """Rows under a header, which decides whether commas, semicolons or tabs are between their fields."""
    told = re.match(r"sep=(.)\n", text)  # as Excel has it
    text = text[told.end() - 1 :] if told else text
    head = text.lstrip("\n").partition("\n")[0]
    between = told[1] if told else max(",;\t", key=head.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True, skipinitialspace=True)
    keys: list[str] = []
    begun = 1
    while True:
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise RecipeError(f"{name}: line {begun} cannot be read ({error}); are its quotes in pairs?") from error
        where, begun = f"{name}: line {begun}", lines.line_num + 1
        if not any(field.strip() for field in fields):
            continue
        if not keys:
            keys = [field.strip().lower() for field in fields]
            _admit_header(keys, name)
            continue
        if any(field.strip() for field in fields[len(keys) :]):
            hint = f"put a text that has {'commas' if between == ',' else repr(between)} in it into double quotes"
            raise RecipeError(f"{where} has {len(fields)} fields, expected {len(keys)}; {hint}")
        yield where, dict(zip(keys, fields, strict=False))


def _admit_header(keys: Sequence[str], name: str) -> None:
    for wanted in (FILE_KEYS, CAPTION_KEYS):
        if not set(wanted) & set(keys):
            expected = f"expected file_name and {CAPTION_KEYS[0]} in the first line, got {some(keys)}"
            raise RecipeError(f"{name}: row 1 has no {wanted[0]}; {expected}")
    double = next((key for key in (*FILE_KEYS, *CAPTION_KEYS) if keys.count(key) > 1), None)
    if double:
        raise RecipeError(f"{name}: row 1 has {double} {keys.count(double)} times; keep one of these columns")


def _file_name(row: Mapping[str, object], where: str) -> str:
    name = next((row[key] for key in FILE_KEYS if key in row), None)
    if not isinstance(name, str) or not name.strip():
        got = f"got {shown(repr(name))} for it" if name is not None else f"got {some([repr(key) for key in row])}"
        raise RecipeError(f"{where} has no file_name ({got}); expected file_name and {CAPTION_KEYS[0]}")
    return name


def _found(name: str, source: Path, folder: Path, find: Names, where: str, tell: Tell) -> str | None:
    """The picture that a row names; "" for a file that is none, None where nothing is there.

    Raises RecipeError for what lies outside the folder.
    """
    for form in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        endings = ("", *SUFFIXES)  # kohya's scripts leave them out
        for whole in (Path.absolute, Path.resolve):
            path = os.path.relpath(os.path.join(whole(folder), form), whole(source)).replace(os.sep, "/")
            picture = next((found for ending in endings if (found := find(path + ending))), None)
            if picture is not None:
                return picture
        if os.path.isfile(source / path):
            if path.startswith("../"):
                raise RecipeError(f"{where}: {some([name])} lies outside {source}; give a folder that has both in it")
            tell(where, "names a file that is no picture, or of a kind that is left out")
            return ""
    return None


def _admit(found: dict[str, Row], picture: str, said: Row, tell: Tell) -> None:
    """Keeps a row; the same again is told, and one that says something else is refused."""
    before = found.setdefault(picture, said)
    if before is said:
        return
    if before.caption != said.caption:
        raise RecipeError(f"{said.where}: {picture} has another caption than in {before.where}; keep one of them")
    tell(said.where, "says again what another row says")


TABLES: Sequence[tuple[str, Callable[[str, str], Rows]]] = (  # patterns of names, in small letters, the first first
    (r"metadata\.jsonl", _json_lines),
    (r"metadata\.json1", _json_lines),
    (r"metadata\.(csv|tsv)", _separated),
    (r"metadata\.json", _json),
    (r"meta(_.*)?\.json", _json),
)
