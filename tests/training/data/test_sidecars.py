"""Sidecar files: every layout of names is found, the first caption counts, and the rest is noted."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from gradina.errors import RecipeError
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.sidecars import without_captions

from .conftest import Files, captions, write_files, write_picture

NFD, NFC = unicodedata.normalize("NFD", "été"), "été"


@pytest.mark.parametrize(
    "name",
    ["a.txt", "a.TXT", "a.Txt", "a.caption", "a.CAPTION", "a.png.txt", "a.PNG.TXT", "A.txt", "a.json", "a.png.json"],
)
def test_sidecar_names(tmp_path: Path, name: str) -> None:
    content = '{"caption": "a seven", "url": "x"}' if name.endswith("json") else " a seven\r\n"
    assert captions(write_files(tmp_path, {"a.png": "", name: content})) == {"a.png": "a seven"}


def test_sidecars_in_subfolders(tmp_path: Path) -> None:
    for name in ("1.png", "2.jpg"):
        write_picture(tmp_path / "deep", name).with_suffix(".txt").write_text(f" boat {name[0]}\n")
    assert captions(tmp_path) == {"deep/1.png": "boat 1", "deep/2.jpg": "boat 2"}
    (tmp_path / "deep" / "2.txt").unlink()
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 2 pictures \(deep/2.jpg\)"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize(("picture", "text"), [(NFD, NFC), (NFC, NFD), (f"x/{NFD}", f"x/{NFC}")])
def test_sidecar_names_in_any_unicode_form(tmp_path: Path, picture: str, text: str) -> None:
    assert list(captions(write_files(tmp_path, {f"{picture}.png": "", f"{text}.TXT": "a seven"})).values()) == [
        "a seven"
    ]


def test_capitals_tell_pictures_apart(tmp_path: Path) -> None:
    write_files(tmp_path, {"A.png": "", "a.png": "", "a.txt": "small"})
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 2 pictures \(A.png\)"):
        read_image_folder(tmp_path)
    assert captions(write_files(tmp_path, {"A.txt": "large"})) == {"A.png": "large", "a.png": "small"}


@pytest.mark.parametrize(
    ("files", "caption", "note"),
    [
        ({"a.txt": "", "a.json": '{"caption": "of JSON"}'}, "of JSON", ""),
        ({"a.txt": "of text", "a.json": '{"caption": "of JSON"}'}, "of text", ""),
        ({"a.txt": " \n", "a.caption": "of caption"}, "of caption", ""),
        ({"a.txt": "one", "a.caption": "two"}, "one", "a.caption: is not read, since there is another"),
        ({"a.txt": "one", "a.png.txt": "two"}, "one", "a.png.txt: is not read"),
        ({"a.json": '{"caption": ["one", "two"]}'}, "one", "a.json: caption is a list, of which the first is read"),
        ({"a.json": "\ufeff" + '{"text": "one"}'}, "one", ""),
        ({"a.json": '{"shapes": []}'}, "a", ""),  # of an annotation program: the file name is the caption
        ({"a.json": '["one"]'}, "a", ""),
        ({"a.json": '{"tags": ["one"]}'}, "a", "a.json: has no caption, expected text or caption (it has tags)"),
        ({"captions.csv": "x", "a.tags": "y"}, "a", "a.tags and 1 more: is not read; captions are read from"),
        ({"a.txt": "a [trigger]"}, "a [trigger]", "a.png: [trigger] in its caption is not replaced; write the words"),
        ({"a.txt": "one\n\ntwo"}, "one\n\ntwo", "a.txt: has several lines, which are read as one caption"),
        ({"a.txt": "\u200b\ufeff a seven\u00a0\x1a\u200b"}, "a seven", ""),
        ({"a.txt": "\u200b", "a.caption": "two"}, "two", ""),
        ({"README.txt": "about"}, "a", "README.txt: has the name of no picture, and is not read"),
        ({"metadata.csv": "file_name,text\na.png,of table", "a.txt": "of text"}, "of table",
         "a.txt: is not read, since metadata.csv has the caption"),
        ({"metadata.csv": "file_name,text\na.png,\n", "a.txt": "of text"}, "of text", ""),
    ],
)  # fmt: skip
def test_first_caption_that_is_not_empty(
    tmp_path: Path, files: Files, caption: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert captions(write_files(tmp_path, {"a.png": "", **files})) == {"a.png": caption}
    assert note in caplog.text
    assert bool(note) == bool(caplog.messages)


def test_empty_sidecar_leaves_a_caption_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"captions are missing for 2 of 2 pictures \(a boat.png, b.png\); put each"):
        read_image_folder(write_files(tmp_path, {"a boat.png": "", "a boat.txt": "\ufeff\r\n", "b.png": ""}))


def test_missing_caption_error_names_empty_sidecars(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"2 pictures \(b.png\); put .*; .txt files that are empty have to be removed"
    ):
        read_image_folder(write_files(tmp_path, {"a.png": "", "a.txt": "a seven", "b.png": "", "b.txt": " \n"}))


def test_broken_link_is_refused(tmp_path: Path) -> None:
    (write_files(tmp_path, {"a.png": ""}) / "a.txt").symlink_to("nowhere")
    with pytest.raises(RecipeError, match=r"a.txt: is not a file, or a broken link; remove it"):
        read_image_folder(tmp_path)


def test_windows_1252_is_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.png": "", "b.png": "", "a.txt": b"caf\xe9", "b.txt": "un café".encode("utf-16")})
    assert captions(tmp_path) == {"a.png": "café", "b.png": "un café"}
    write_files(tmp_path, {"b.txt": b"un caf\xe9"})
    assert captions(tmp_path) == {"a.png": "café", "b.png": "un café"}
    first, second = caplog.messages
    assert first.startswith(f"{tmp_path / 'a.txt'}: not UTF-8, read as Windows-1252")
    assert second.startswith(f"2 files ({tmp_path / 'a.txt'}, ...): not UTF-8")


def test_without_captions(tmp_path: Path) -> None:
    captioned = {"a.TXT": "", "b.caption": "x", "c.json": '{"caption": "a seven"}', "x/e.png.txt": "x"}
    pictures = dict.fromkeys(("a.png", "b.png", "c.png", "d.png", "x/e.png", "x/f.png"), "")
    write_files(tmp_path, pictures | captioned | {"d.json": '{"shapes": []}'})
    found = without_captions(sorted(tmp_path.rglob("*.png")))
    assert [path.name for path in found] == ["d.png", "f.png"]
