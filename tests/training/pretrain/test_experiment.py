"""What stages share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradina.errors import RecipeError
from gradina.training.data.sources import load_dataset
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import Recipe, TextEncoderPhase, TextEncoderRecipe, read_recipe


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


def with_registers(recipe: Recipe, registers: int) -> Recipe:
    """The recipe with a text encoder of so many registers."""
    phase = TextEncoderPhase(steps=1, batch=1, lr=1e-3)
    return replace(recipe, text_encoder=TextEncoderRecipe(training=phase, registers=registers))


def test_captions_that_reach_registers_get_a_warning(
    recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = read_recipe(recipe_file)
    recipe = replace(recipe, vocabulary=replace(recipe.vocabulary, length=6))
    Experiment(with_registers(recipe, 1), tmp_path).tokenizer  # noqa: B018 (it warns)
    assert "have more than the 3 tokens that are read; their ends take the place of registers" in caplog.text


def test_registers_that_do_not_divide_the_latents_are_refused(recipe_file: Path, tmp_path: Path) -> None:
    experiment = Experiment(with_registers(read_recipe(recipe_file), 9), tmp_path)
    experiment.latents = lambda *_: 2 * (torch.zeros(1, 4, 8, 8),)  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match=r"text_encoder\.registers: 3 by 3 do not divide latents of 8 by 8"):
        experiment.new_latent_predictor()
