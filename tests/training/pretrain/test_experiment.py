"""What stages share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradina.training.data.sources import load_dataset
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import read_recipe


def test_truncated_captions_get_a_warning(recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = read_recipe(recipe_file)
    whole = Experiment(recipe, tmp_path).tokenizer
    length = 2 + max(len(whole.ids(text)) for text in load_dataset(recipe).texts())
    for given, warned in ((length, False), (4, True)):
        caplog.clear()
        short = Experiment(replace(recipe, vocabulary=replace(recipe.vocabulary, length=given)), tmp_path)
        assert short.tokenizer.length == given
        assert [note.startswith("vocabulary.length: ") for note in caplog.messages] == [True] * warned
    assert "captions have more than the 2 tokens that are read; their ends are cut off (the first: " in caplog.text
