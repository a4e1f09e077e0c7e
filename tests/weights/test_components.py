"""Components of one model, or an error that names what does not fit."""

import logging
import shutil

import pytest
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.weights.formats.diffusers import read_folder


def test_components_of_different_models_are_refused(tiny, folder, saved, edit_json):
    saved(folder)
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=20)
    assert read_folder(folder).tokenizer.length == 20
    shutil.rmtree(folder / "text_encoder")
    saved(folder.with_name("digits"))
    text = folder.with_name("digits") / "text_encoder"
    edit_json(text / "config.json", hidden_size=32)
    tensors = load_file(text / "model.safetensors")
    cut = {n: (x[:32] if x.shape[0] == 64 else x)[..., : 32 if x.shape[-1] == 64 else None] for n, x in tensors.items()}
    save_file({n: x.contiguous() for n, x in cut.items()}, text / "model.safetensors")
    text.rename(folder / "text_encoder")
    with pytest.raises(
        WeightsError, match=f"{folder}: the U-Net reads text states of width 64, its text tower gives 32"
    ):
        read_folder(folder)


def test_tokenizer_longer_than_its_text_tower_is_cut_with_a_warning(tiny, folder, saved, caplog, edit_json):
    saved(folder)
    config = folder / "tokenizer" / "tokenizer_config.json"
    edit_json(config, model_max_length=200)
    with caplog.at_level(logging.WARNING):
        model = read_folder(folder)
    assert model.tokenizer.length == 77
    assert model.tokenizer("a lighthouse").tolist() == tiny().tokenizer("a lighthouse").tolist()
    assert (
        "its tokenizer makes texts of 200 tokens, its text tower has 77 positions; texts are cut to 77 tokens"
        in caplog.text
    )


def test_contradicting_prediction_is_warned_of(folder, saved, caplog):
    saved(folder, "sd2")
    with caplog.at_level(logging.WARNING):
        assert read_folder(folder, prediction="v").prediction == "v"
        assert not caplog.records
        assert read_folder(folder, prediction="eps").prediction == "eps"
    assert "states that it predicts v; drawing as if it were eps, as asked" in caplog.text
