"""Metadata tables: every form of others is read, invalid rows are refused with their line."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from gradina.errors import RecipeError
from gradina.training.data.image_folder import caption_summary, read_image_folder

from .conftest import Files, captions, write_files, write_picture


def rows(*of: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in of)


JSONL, CSV = "metadata.jsonl", "metadata.csv"


ONE = rows({"file_name": "a.png", "text": "a seven"})


def test_jsonl_and_csv(tmp_path: Path) -> None:
    write_picture(tmp_path, "1.png")
    write_picture(tmp_path / "more", "2.png")
    rows = [{"file_name": "1.png", "text": "one"}, {"file_name": "more/2.png", "caption": "two"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions(tmp_path) == {"1.png": "one", "more/2.png": "two"}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\n1.png,"one, and more"\nmore/2.png,two\n')
    assert captions(tmp_path) == {"1.png": "one, and more", "more/2.png": "two"}
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,one\nmore/3.png,three\n")
    with pytest.raises(RecipeError, match=r"1 pictures with a caption do not exist \(.*3.png\)"):
        read_image_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,text\n1.png,one\n")
    with pytest.raises(
        RecipeError, match=r"metadata.csv: row 1 has no file_name; expected file_name and text in the first"
    ):
        read_image_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.jsonl", ONE),
        ("metadata.jsonl", "\ufeff" + ONE.replace("\n", "\r\n\r\n")),
        ("metadata.jsonl", ONE.encode("utf-16")),
        ("METADATA.JSONL", ONE),
        ("Metadata.Csv", "file_name,text\na.png,a seven\n"),
        ("metadata.csv", "\ufefffile_name,text\r\na.png,a seven\r\n"),
        ("metadata.csv", "file_name,text\ra.png,a seven\r"),
        ("metadata.csv", "file_name;text\na.png;a seven\n"),
        ("metadata.csv", "file_name\ttext\na.png\ta seven\n"),
        ("metadata.csv", "sep=;\r\nfile_name;text\r\na.png;a seven\r\n"),
        ("metadata.csv", "sep=|\nfile_name|text\na.png|a seven\n"),
        ("metadata.tsv", "file_name\ttext\na.png\ta seven\n"),
        ("metadata.csv", '"file_name","text"\n"a.png","a seven"\n'),
        ("metadata.csv", "File_Name, Text\na.png, a seven\n\n"),
        ("metadata.csv", "id,text,file_name\n3,a seven,a.png,\n"),
        ("metadata.csv", "image,caption\na.png,a seven\n"),
        ("metadata.jsonl", rows({"image": "a.png", "prompt": "a seven", "width": 3})),
        ("metadata.json", json.dumps([{"file_name": "a.png", "text": "a seven"}], indent=2)),
        ("metadata.jsonl", json.dumps([{"file_name": "a.png", "text": "a seven"}], indent=2)),
        ("metadata.json", ONE),
        ("metadata.csv", 'file_name, text\na.png, "a seven"\n'),
        ("meta_cap.json", '{"a": {"caption": ["a seven"], "tags": []}}'),
        ("meta_cap.json", '{"a.png": {"caption": "a seven"}}'),
        ("meta_cap.json", '{"a": {"caption": "a seven", "train_resolution": [512, 512]}}'),
    ],
)
def test_table_formats(tmp_path: Path, name: str, table: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.png": "", name: table})
    assert captions(tmp_path) == {"a.png": "a seven"}
    assert caption_summary(read_image_folder(tmp_path)) == f'captions: from {name} (1 of 1); a.png: "a seven"'
    assert not caplog.messages


@pytest.mark.parametrize(
    "name",
    ["x/a.png", "./x/a.png", "x/../x/a.png", "../F/x/a.png", "x\\a.png", ".\\x\\a.png", "x//a.png", " x/a.png",
     "X/A.PNG", "FOLDER/x/a.png"],
)  # fmt: skip
def test_paths_of_pictures(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "F"
    table = rows({"file_name": name.replace("FOLDER", str(folder)), "text": "a seven"})
    assert captions(write_files(folder, {"x/a.png": "", "metadata.jsonl": table})) == {"x/a.png": "a seven"}


@pytest.mark.parametrize(("form", "other"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_any_unicode_form(tmp_path: Path, form: Literal["NFC", "NFD"], other: Literal["NFC", "NFD"]) -> None:
    table = rows({"file_name": unicodedata.normalize(form, "été.png"), "text": "a seven"})
    write_files(tmp_path, {unicodedata.normalize(other, "été.png"): "", "metadata.jsonl": table})
    assert list(captions(tmp_path).values()) == ["a seven"]


def test_absolute_path_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows({"file_name": str(tmp_path / "F" / "a.png"), "text": "a seven"})
    write_files(tmp_path / "F", {"a.png": "", "metadata.jsonl": table})
    (tmp_path / "link").symlink_to("F")
    assert captions(tmp_path / "link") == {"a.png": "a seven"}
    monkeypatch.chdir(tmp_path / "F")
    assert captions(Path()) == {"a.png": "a seven"}


def test_exact_name_comes_first(tmp_path: Path) -> None:
    table = rows({"file_name": "x\\a.png", "text": "flat"}, {"file_name": "x/a.png", "text": "deep"})
    folder = write_files(tmp_path, {"x\\a.png": "", "x/a.png": "", "metadata.jsonl": table})
    assert captions(folder) == {"x\\a.png": "flat", "x/a.png": "deep"}


def test_tables_in_subfolders(tmp_path: Path) -> None:
    tables = {"train/metadata.jsonl": ONE, "test/metadata.csv": "file_name,text\nb.png,two\n", "c.txt": "three"}
    write_files(tmp_path, {"train/a.png": "", "test/b.png": "", "c.png": "", **tables})
    assert captions(tmp_path) == {"c.png": "three", "test/b.png": "two", "train/a.png": "a seven"}


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        (CSV, "file_name,text\na.png,a red apple, on a table\n",
         r"line 2 has 3 fields, expected 2; put a text that has commas in it into double quotes"),
        (CSV, 'file_name,text\na.png,"a\nb"\na.png,x,y\n', r"line 4 has 3 fields"),
        (CSV, 'file_name,text\na.png,"a seven\n', r"line 2 cannot be read .*quotes"),
        (CSV, 'file_name,text\na.png,"red" apple\n', r"line 2 cannot be read .*quotes"),
        (CSV, 'sep=;\nfile_name;text\na.png;x;y\n', r"line 3 has 3 fields, expected 2; put a text that has ';' in it"),
        (CSV, "a.png,a seven\n", r"row 1 has no file_name; expected .* first line, got a.png, a seven"),
        (CSV, "file_name,label\na.png,3\n", r"row 1 has no text; .* got file_name, label"),
        (CSV, "file_name,text\n,a seven\n", r"line 2 has no file_name \(got '' for it\)"),
        (CSV, "", r"has no rows; expected file_name"),
        (CSV, "file_name,text\n", r"has no rows"),
        (JSONL, "\n", r"has no rows"),
        (JSONL, ONE + "{\n", r"line 2 is not JSON"),
        (JSONL, "[" * 100_000, r"line 1 is not JSON \(it is nested too deep\)"),
        (JSONL, ONE + '{"file_name": "b.png",}', r"line 2 is not JSON \(.*, column 23\)$"),
        (JSONL, '{"file_name": "a.png", "text": "x", "text": "y"}', r"line 1 is not JSON \(it has 'text' twice\)"),
        ("metadata.json", "{", r"is not JSON"),
        ("metadata.json", ONE + "{", r"line 2 is not JSON"),
        ("meta_cap.json", '{"a": {"caption": 7}}', r"a: got 7, expected a text"),
        ("meta_cap.json", '{"a": {"caption": "x"}, "a": {"caption": "y"}}', r"is not JSON \(it has 'a' twice\)"),
        (CSV, "file_name,text,text\na.png,x,y\n", r"row 1 has text 2 times; keep one"),
        (CSV, "file_name,file_name,text\na.png,b.png,y\n", r"row 1 has file_name 2 times; keep one"),
        (JSONL, '\n["a.png", "a seven"]', r'line 2: got \["a.png", "a seven"\], expected {"file_name"'),
        (JSONL, '{"name": "a.png"}', r"line 1 has no file_name \(got 'name'\)"),
        (JSONL, '{"file_name": 3, "text": "x"}', r"line 1 has no file_name \(got 3 for it\)"),
        (JSONL, '{"file_name": "a.png", "text": 7}', r"line 1: text is 7, expected a text"),
        (JSONL, '{"file_name": "a.png", "text": 0}', r"line 1: text is 0, expected a text"),
        (JSONL, '{"file_name": "a.png", "text": {}}', r"line 1: text is {}, expected a text"),
        (JSONL, '{"file_name": "a.png", "text": [1]}', r"line 1: text is 1, expected a text"),
        (JSONL, '{"file_name": "b.png", "text": "x"}', r"1 pictures with a caption do not exist \(b.png\)"),
        (JSONL, '{"file_name": "/b.png", "text": "x"}', r"1 pictures with a caption do not exist \(/b.png\)"),
        (JSONL, rows({"file_name": "\0\ud800" + "x" * 999, "text": "x"}), r"1 pictures with a caption do not exist"),
        (JSONL, rows({"file_name": "../out.png", "text": "x"}), r"line 1: ../out.png lies outside "),
        (JSONL, ONE + ONE.replace("seven", "two"),
         r"line 2: a.png has another caption than in .*metadata.jsonl: line 1; keep one of them"),
        ("metadata.json", '[{"file_name": "a.png", "text": "x"}, 3]', r"row 2: got 3, expected an object"),
        (CSV, b"\x89PNG\r\n\x1a\n\0", r"metadata.csv is not text in UTF-8, UTF-16 or Windows-1252"),
    ],
)  # fmt: skip
def test_invalid_table_names_its_line(tmp_path: Path, name: str, table: str | bytes, words: str) -> None:
    write_files(tmp_path, {"out.png": ""})
    with pytest.raises(RecipeError, match=words) as refused:
        read_image_folder(write_files(tmp_path / "F", {"a.png": "", name: table}))
    assert str(refused.value).startswith(f"{tmp_path / 'F' / name}")


@pytest.mark.parametrize(
    ("files", "caption", "note"),
    [
        ({"metadata.json1": ONE}, "a seven", 'metadata.json1: ends with the digit one, and is read as ".jsonl"'),
        ({"metadata.jsonl": ONE + ONE}, "a seven", "metadata.jsonl: line 2: repeats another row"),
        ({"metadata.jsonl": rows({"file_name": "a.png", "text": ["one", "two"]})}, "one",
         "metadata.jsonl: line 1: text is a list, of which the first is read"),
        ({"metadata.jsonl": ONE + rows({"file_name": "b.txt", "text": "x"}), "b.txt": ""}, "a seven",
         "metadata.jsonl: line 2: names a file that is no picture, or of a kind that is left out"),
        ({"metadata.jsonl": ONE, "metadata.csv": "file_name,text\na.png,x\n"}, "a seven",
         "metadata.csv: is not read, since metadata.jsonl is there"),
        ({"metadata.jsonl": rows({"file_name": "a.png", "words": "x"}), "a.txt": "of text"}, "of text",
         "metadata.jsonl: line 1: has no caption, expected text (it has file_name, words)"),
        ({"metadata.json": '{"license": "MIT"}'}, "a", "metadata.json: has no captions in a known form"),
        ({"metadata.csv": "file_name,text\na.png,NaN\n", "a.txt": "of text"}, "of text",
         "metadata.csv: line 2: text is NaN, which marks a missing value, and is no caption"),
        ({"metadata.csv": "file_name,text,prompt\na.png,one,two\n"}, "one",
         "metadata.csv: line 2: has text and prompt, of which text is read"),
        ({"metadata.jsonl": rows({"file_name": "a.png", "text": [None, "", "two"]})}, "two",
         "metadata.jsonl: line 1: text is a list, of which the first is read"),
        ({"meta_cap.json": '{"a": {"caption": "x"}}', "meta_cap_dd.json": '{"a": {"caption": "x", "tags": "y"}}'},
         "x, y", "meta_cap.json: is not read, since meta_cap_dd.json is there"),
        ({"metadata.csv": b"file_name,text\na.png,caf\xe9\n"}, "café", "metadata.csv: not UTF-8, read as Windows-1252"),
    ],
)  # fmt: skip
def test_unusual_tables_are_noted(
    tmp_path: Path, files: Files, caption: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert captions(write_files(tmp_path, {"a.png": "", **files})) == {"a.png": caption}
    assert [note in message for message in caplog.messages] == [True]


def test_names_without_suffix_may_have_dots(tmp_path: Path) -> None:
    table = '{"v1.5": {"caption": "a seven"}, "b": {"caption": "a two"}}'
    write_files(tmp_path, {"v1.5.png": "", "b.JPG": "", "meta_cap.json": table})
    assert captions(tmp_path) == {"v1.5.png": "a seven", "b.JPG": "a two"}


def test_unicode_line_separators_do_not_end_lines(tmp_path: Path) -> None:
    table = '{"file_name": "a.png", "text": "a\u2028seven\x85or two"}\n'
    assert captions(write_files(tmp_path, {"a.png": "", "metadata.jsonl": table})) == {
        "a.png": "a\u2028seven\x85or two"
    }


def test_repeated_rows_are_one_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert captions(write_files(tmp_path, {"a.png": "", "metadata.jsonl": ONE * 9})) == {"a.png": "a seven"}
    assert [message.split(": ")[1:] for message in caplog.messages] == [["line 2 and 7 more", "repeats another row"]]
