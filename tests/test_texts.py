"""Text files round-trip in every encoding of editors, and other files are refused by name."""

from __future__ import annotations

import codecs
import logging
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gradina.errors import RecipeError, RequestError
from gradina.texts import NON_LATIN, OTHER_DOCUMENTS, parse_json, read_text, text_reader

MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
WRITTEN = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])).filter(
    lambda text: not text.lstrip().lower().startswith(("\ufeff", *(prefix for prefix, _ in OTHER_DOCUMENTS)))
)


def read(data: bytes) -> str:
    with text_reader(RecipeError) as reader:
        return reader(data, "a.txt")


@given(WRITTEN, st.sampled_from(sorted(MARKED)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_round_trip_with_byte_order_mark(text: str, encoding: str, end: str) -> None:
    assert read(MARKED[encoding] + text.replace("\n", end).encode(encoding)) == text


@given(WRITTEN)
def test_round_trip_in_utf_8(text: str) -> None:
    assert read(text.encode()) == text


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), min_size=1), st.sampled_from(["le", "be"]))
def test_round_trip_in_utf_16_without_mark(text: str, order: str) -> None:
    assert read(text.encode(f"utf-16-{order}")) == text


@given(st.text(st.characters(codec="cp1252", exclude_categories=["Cc"]), min_size=1).map(lambda text: text + "é"))
def test_round_trip_in_windows_1252(text: str) -> None:
    assume(not NON_LATIN.search(text))
    data = text.encode("cp1252")
    try:
        expected = data.decode()
    except UnicodeDecodeError:
        expected = text
    marked = data.startswith(tuple(MARKED.values()))
    assert marked or read(data) == expected


@given(st.binary(max_size=40))
def test_any_bytes_are_text_without_nul_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except RecipeError as error:
        found = str(error)
    assert not {"\0", "\r"} & set(found)


@pytest.mark.parametrize(
    "data",
    [
        *(b"\0", bytes(40), b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xfe\x41", b"\xff\xd8\xff\x10JFIF", b"\x81a"),
        *("a красная лодка".encode("cp1251"), "红色的船".encode("gbk"), "빨간 배입니다".encode("euc-kr")),
    ],
)
def test_binary_files_are_refused(data: bytes) -> None:
    with pytest.raises(RecipeError, match=r"^a.txt is not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8$"):
        read(data)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (rb"{\rtf1\ansi a seven}", "a document in RTF, expected plain text"),
        (b"\n<!DOCTYPE html>\n<html>404</html>", "a page in HTML, expected plain text"),
        (b"<html>403 Forbidden</html>", "a page in HTML, expected plain text"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
            "a pointer of Git LFS; fetch the file",
        ),
    ],
)
def test_other_documents_are_refused(data: bytes, kind: str) -> None:
    with pytest.raises(RecipeError, match=f"^a.txt is {kind}"):
        read(data)


def test_fallback_is_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with caplog.at_level(logging.WARNING):
        assert read_text(tmp_path / "a.txt", RecipeError) == "café"
        with text_reader(RecipeError) as reader:
            assert [reader(b"caf\xe9", name) for name in ("b", "c")] == ["café"] * 2
            assert reader(b"cafe", "d") == "cafe"
    one, many = caplog.messages
    assert one.startswith(f"{tmp_path / 'a.txt'}: not UTF-8, read as Windows-1252")
    assert many.startswith("2 files (b, ...): not UTF-8, read as Windows-1252")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^--phrases: .*none cannot be read \(No such file or directory\)"):
        read_text(tmp_path / "none", RequestError, "--phrases: ")
    with pytest.raises(RecipeError, match=r"cannot be read \(Is a directory\); give a text file"):
        read_text(tmp_path, RecipeError)


def test_deeply_nested_json_is_refused() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)


def test_json_errors_name_position_and_duplicate_key() -> None:
    for text, where in (('{"a": 1,}', "column 9$"), ('{"a": 1}\n{', "line 2, column 1$")):
        with pytest.raises(ValueError, match=where):
            parse_json(text)
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="it has 'a' twice"):
        parse_json('{"b": [{"a": 1, "a": 2}]}', unique_keys=True)
