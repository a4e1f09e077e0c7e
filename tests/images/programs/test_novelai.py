"""NovelAI: weights in prompts are noted."""

from __future__ import annotations

from pathlib import Path

from .conftest import NOVEL, NOVEL_CHUNKS, record_of


def test_weights_are_noted(tmp_path: Path) -> None:
    record = record_of(tmp_path, {**NOVEL_CHUNKS, "Description": "a {red} kite", "Comment": NOVEL})
    assert record.notes[0] == "prompt: weights such as {word} or 1.2::word:: are read as plain words"
