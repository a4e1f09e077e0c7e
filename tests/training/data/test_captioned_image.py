"""Captions in JSON: invalid ones are refused with the name of their file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradina.errors import RecipeError
from gradina.training.data.image_folder import read_image_folder

from .conftest import Files, write_files


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b"\x89PNG\r\n\x1a\n\0\0"}, "a.txt is not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8"),
        ({"a.json": "{"}, "a.json: is not JSON"),
        ({"a.json": "[" * 100_000}, r"a.json: is not JSON \(it is nested too deep\)"),
        ({"a.json": '{"caption": 7}'}, "a.json: caption is 7, expected a text"),
        ({"a.json": '{"text": {"en": "x"}}'}, "a.json: text is {'en': 'x'}, expected a text"),
        ({"a.json": '{"text": "\\ud800"}'}, r"a.json: text is not text in Unicode \(surrogates not allowed\)"),
    ],
)
def test_invalid_caption_names_its_file(tmp_path: Path, files: Files, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_image_folder(write_files(tmp_path, {"a.png": "", **files}))
