"""Captions in metadata tables: metadata.jsonl and .csv as in the datasets library, and the JSON of kohya's scripts."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradina.errors import RecipeError
from gradina.images.folder import SUFFIXES
from gradina.texts import ReadText, json_or_none, parse_json
from gradina.training.data.captioned_image import CAPTION_KEYS, Note, caption_from_row, first_few, shortened
from gradina.training.data.sidecars import NameIndex

FILE_KEYS = (
    "file_name", "image_file_name", "filename", "file", "image_file", "image", "image_path", "file_path", "path",
)  # fmt: skip
Rows = Iterator[tuple[str, Mapping[str, object]]]  # the location of each row, for messages, and its fields


@dataclass(frozen=True)
class Row:
    """The caption of a picture in a table, and the row's location for messages."""

    where: str
    caption: str
    table: str


def read_tables(
    source: Path, files: Sequence[Path], pictures: Sequence[str], read: ReadText, note: Note
) -> dict[str, Row]:
    """The rows of the metadata tables among the files of a folder, by the paths of its pictures.

    Raises RecipeError, naming the line, for invalid rows and missing pictures.
    """
    find, found, missing = NameIndex(pictures), dict[str, Row](), list[str]()
    for table, reader in _tables(files, note):
        rows = 0
        for where, row in reader(read(table.read_bytes(), str(table)), str(table)):
            rows += 1
            if not set(CAPTION_KEYS) & set(row):
                note(where, f"has no caption, expected {CAPTION_KEYS[0]} (it has {first_few(list(row))})")
            name = _file_name(row, where)
            picture = _find_picture(name, source, table.parent, find, where, note)
            if picture is None:
                missing.append(name)
            elif picture:
                named = Row(where, caption_from_row(row, where, note), table.relative_to(source).as_posix())
                first = found.setdefault(picture, named)
                if first.caption != named.caption:
                    other = f"{picture} has another caption than in {first.where}"
                    raise RecipeError(f"{where}: {other}; keep one of them")
                if first is not named:
                    note(where, "repeats another row")
        if not rows and reader is _read_json:
            note(str(table), "has no captions in a known form, and is not read")
        elif not rows:
            raise RecipeError(f"{table}: has no rows; expected file_name and {CAPTION_KEYS[0]} in each")
        if missing:
            names = f"{len(missing)} pictures with a caption do not exist ({first_few(missing)})"
            raise RecipeError(f"{table}: {names}; give their paths from {table.parent} on")
    return found


def _tables(files: Sequence[Path], note: Note) -> Iterator[tuple[Path, Callable[[str, str], Rows]]]:
    """The table of each folder with its reader; a note names each other table there."""
    folders: dict[Path, list[tuple[int, str, Path]]] = {}
    for path in files:
        rank = _rank(path.name)
        if rank is not None:  # of kohya's tables, the last by name has most
            folders.setdefault(path.parent, []).append((rank, "" if rank < len(TABLES) - 1 else path.name, path))
    for candidates in folders.values():
        best = min(rank for rank, _, _ in candidates)
        table = max(one for one in candidates if one[0] == best)[2]
        for _, _, other in candidates:
            if other != table:
                note(str(other), f"is not read, since {table.name} is there")
        if table.name.lower().endswith("json1"):
            note(str(table), 'ends with the digit one, and is read as ".jsonl"')
        yield table, TABLES[best][1]


def _rank(name: str) -> int | None:
    return next((rank for rank, (pattern, _) in enumerate(TABLES) if re.fullmatch(pattern, name.lower())), None)


def is_table(name: str) -> bool:
    """Whether a file has the name of a metadata table."""
    return _rank(name) is not None


def _read_json_lines(text: str, name: str) -> Rows:
    """An object in each line; or a list of them, whatever the suffix of the file."""
    if text.lstrip("\ufeff \t\n").startswith("[") and isinstance(json_or_none(text), list):
        text = text if not (rows := list(_read_json(text, name))) else ""
        yield from rows
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip("\ufeff \t"):
            where = f"{name}: line {number}"
            try:
                row = parse_json(line.strip("\ufeff \t"), unique_keys=True)
            except ValueError as error:
                raise RecipeError(f"{where} is not JSON ({error})") from error
            if not isinstance(row, dict):
                got = shortened(line.strip())
                raise RecipeError(f'{where}: got {got}, expected {{"file_name": "a.png", "text": "what it shows"}}')
            yield where, row


def _read_json(text: str, name: str) -> Rows:
    """A list of rows, or one row; or an object from paths to captions and tags, as kohya's scripts write it.

    Any other JSON has no rows. What is not JSON, but has an object in its first line, is read as JSON lines.
    """
    try:
        content = parse_json(text, unique_keys=True)
    except ValueError as error:
        if not isinstance(json_or_none(text.strip("\ufeff \t\n").partition("\n")[0]), dict):
            raise RecipeError(f"{name}: is not JSON ({error})") from error
        yield from _read_json_lines(text, name)
        return
    if isinstance(content, dict) and set(FILE_KEYS) & set(content) and set(CAPTION_KEYS) & set(content):
        content = [content]
    if isinstance(content, list) and any(isinstance(row, dict) and set(FILE_KEYS) & set(row) for row in content):
        for number, row in enumerate(content, 1):
            if not isinstance(row, dict):
                raise RecipeError(f"{name}: row {number}: got {shortened(repr(row))}, expected an object")
            yield f"{name}: row {number}", row
    rows = content.items() if isinstance(content, dict) else ()
    if any(isinstance(row, dict) and {"caption", "tags"} & set(row) for _, row in rows):
        for path, row in rows:
            where = f"{name}: {shortened(path)}"
            values = [row.get(part) for part in ("caption", "tags")] if isinstance(row, dict) else []
            texts = [_joined(value, where) for value in values]
            yield where, {"file_name": path, "caption": ", ".join(filter(None, texts))}


def _joined(value: object, where: str) -> str:
    """The caption or the tags in a table of kohya's scripts: a text, or a list of them."""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise RecipeError(f"{where}: got {shortened(repr(value))}, expected a text")
    return ", ".join(filter(None, texts))


def _read_csv(text: str, name: str) -> Rows:
    """Rows under a header, which decides whether commas, semicolons or tabs separate their fields."""
    declared = re.match(r"sep=(.)\n", text)  # by Excel
    text = text[declared.end() - 1 :] if declared else text
    head = text.lstrip("\n").partition("\n")[0]
    separator = declared[1] if declared else max(",;\t", key=head.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    keys: list[str] = []
    start = 1
    try:
        for fields in lines:
            where, start = f"{name}: line {start}", lines.line_num + 1
            if not any(map(str.strip, fields)):
                continue
            if not keys:
                keys = [field.strip().lower() for field in fields]
                _check_header(keys, name)
            elif any(map(str.strip, fields[len(keys) :])):
                quoted = "commas" if separator == "," else repr(separator)
                hint = f"put a text that has {quoted} in it into double quotes"
                raise RecipeError(f"{where} has {len(fields)} fields, expected {len(keys)}; {hint}")
            else:
                yield where, dict(zip(keys, fields, strict=False))
    except csv.Error as error:
        raise RecipeError(f"{name}: line {start} cannot be read ({error}); are its quotes in pairs?") from error


def _check_header(keys: Sequence[str], name: str) -> None:
    for wanted in (FILE_KEYS, CAPTION_KEYS):
        if not set(wanted) & set(keys):
            expected = f"expected file_name and {CAPTION_KEYS[0]} in the first line, got {first_few(keys)}"
            raise RecipeError(f"{name}: row 1 has no {wanted[0]}; {expected}")
    double = next((key for key in (*FILE_KEYS, *CAPTION_KEYS) if keys.count(key) > 1), None)
    if double:
        raise RecipeError(f"{name}: row 1 has {double} {keys.count(double)} times; keep one of these columns")


def _file_name(row: Mapping[str, object], where: str) -> str:
    name = next((row[key] for key in FILE_KEYS if key in row), None)
    if not isinstance(name, str) or not name.strip():
        got = first_few(list(map(repr, row))) if name is None else f"{shortened(repr(name))} for it"
        raise RecipeError(f"{where} has no file_name (got {got}); expected file_name and {CAPTION_KEYS[0]}")
    return name


def _find_picture(name: str, source: Path, folder: Path, find: NameIndex, where: str, note: Note) -> str | None:
    """The picture that a row names; "" for a file that is no picture, None for no file.

    Raises RecipeError for a file outside the folder.
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
                raise RecipeError(
                    f"{where}: {first_few([name])} lies outside {source}; give a folder that has both in it"
                )
            note(where, "names a file that is no picture, or of a kind that is left out")
            return ""
    return None


TABLES: Sequence[tuple[str, Callable[[str, str], Rows]]] = (  # patterns of names in small letters, by priority
    (r"metadata\.jsonl", _read_json_lines),
    (r"metadata\.json1", _read_json_lines),
    (r"metadata\.(csv|tsv)", _read_csv),
    (r"metadata\.json", _read_json),
    (r"meta(_.*)?\.json", _read_json),
)
