"""The methods: what each trains, and on which texts; class pictures, and the initial vectors of words."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from gradina import Request, generate, load
from gradina.errors import RecipeError, WeightsError
from gradina.pipeline.model import StableDiffusion
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.finetune.methods import (
    class_pictures,
    dreambooth,
    first_vectors,
    imagic_embedding,
    imagic_finetune,
    textual_inversion,
)
from gradina.weights.formats.imagic import read_states
from gradina.weights.formats.textual_inversion import read_embedding

Run = Callable[..., Path | None]
REQUEST = Request(prompt="a <boat>", seed=7, steps=3, width=64, height=64, sampler="ddim", schedule="leading")
LONG = "a boat " * 60


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def test_a_word_begins_as_another_and_is_all_that_is_trained(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, run_method: Run, tmp_path: Path
) -> None:
    config = replace(config, vectors=3, steps=2)
    ids = model.tokenizer.ids("boat")
    method = textual_inversion(model, data, "<boat>", "boat", config)
    initial = method.trainable.values("word")["vectors"]
    assert torch.equal(initial[0], model.text.token.weight[ids[0]])
    assert [tuple(p.shape) for p in method.trainable.parameters()] == [(3, 32)]
    result = run_method(method, config, tmp_path / "run")
    assert result is not None
    concept = read_embedding(result)
    assert concept.token == "<boat>"
    assert not torch.equal(concept.vectors, initial)
    with pytest.raises(WeightsError, match="'seven' is a token of this model already"):
        textual_inversion(model, data, "seven", "boat", config)
    with pytest.raises(RecipeError, match="init word: ' ' holds no word"):
        textual_inversion(model, data, "<boat>", " ", config)


@pytest.mark.parametrize(
    ("start", "count", "warned"), [("xylophone", 1, True), ("xylophone", 99, False), ("boat", 9, False)]
)
def test_an_initial_word_of_too_many_tokens_gets_a_warning(
    model: StableDiffusion, caplog: pytest.LogCaptureFixture, start: str, count: int, warned: bool
) -> None:
    ids = model.tokenizer.ids(start)
    initial = first_vectors(model, start, count)
    assert torch.equal(initial[: len(ids)], model.text.token.weight[ids[:count]])
    if warned:
        (note,) = caplog.messages
        assert note.startswith(f"init word: 'xylophone' has {len(ids)} tokens (")
        assert note.endswith(f"--vectors {len(ids)} takes all")
    else:
        assert not caplog.messages
    with pytest.raises(RecipeError, match="init word: the model's tokenizer does not know all of"):
        first_vectors(model, "<|endoftext|>", 1)


def test_a_word_with_capitals_draws_the_same_in_diffusers(
    tiny_model: Callable[..., StableDiffusion],
    data: LatentDataset,
    config: FinetuneConfig,
    run_method: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of three vectors: it is kept in lower case, in which diffusers finds it."""
    tiny_model("sd1").save(tmp_path / "model")
    model = load(tmp_path / "model")
    config = replace(config, vectors=3, steps=3, lr=0.1)
    method = textual_inversion(model, data, "<Toy>", "boat", config)
    assert "word: <Toy> is kept as <toy>, as prompts are read in lower case" in caplog.messages
    result = run_method(method, config, tmp_path / "run")
    assert result is not None
    assert list(load_file(result)) == ["<toy>"]
    (mine,) = generate(model, replace(REQUEST, prompt="a <Toy> boat", concepts=(str(result),)))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipe.load_textual_inversion(result)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    theirs = pipe("a <toy> boat", num_inference_steps=3, guidance_scale=3.0, latents=noise).images[0]
    assert np.abs(levels(mine.image) - levels(theirs)).max() <= 1
    (plain,) = generate(model, REQUEST)
    assert np.abs(levels(mine.image) - levels(plain.image)).max() > 3


def test_long_prompts_of_dreambooth_and_of_words_get_a_warning(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    dreambooth(model, data, replace(data, captions=((LONG, LONG),)), config)
    assert caplog.messages.pop().startswith("captions: 1 of 3 are longer than the 75 tokens")
    textual_inversion(model, data, "<boat>", "boat", replace(config, vectors=74))
    assert "captions: 6 of 8 are longer" in caplog.messages[-1]


def test_prior_preservation_adds_the_loss_on_class_pictures(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig
) -> None:
    without, light, heavy = (
        dreambooth(model, data, class_data, replace(config, prior=weight)).loss(torch.nn.Module(), 0).mean().item()
        for class_data, weight in ((None, 1.0), (data, 1.0), (data, 3.0))
    )
    assert heavy - without == pytest.approx(3 * (light - without), rel=1e-4)
    assert light > without


def test_imagic_trains_the_embedding_first_and_then_the_unet(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, run_method: Run, tmp_path: Path
) -> None:
    first = imagic_embedding(model, data, "a green boat", config)
    assert [tuple(p.shape) for p in first.trainable.parameters()] == [(77, 32)]
    result = run_method(first, config, tmp_path / "1")
    assert result is not None
    states = read_states(result, 32)
    assert not torch.equal(states, model.encode_text(["a green boat"]).states[0])
    second = imagic_finetune(model, data, states, replace(config, text_rate=0.5))
    assert {name.partition(".")[0] for name, _ in second.trainable.named_parameters()} == {"unet"}
    edit = run_method(second, config, tmp_path / "2")
    assert edit is not None
    assert torch.equal(read_states(edit, 32), states)


def test_class_pictures_are_drawn_once(model: StableDiffusion, tmp_path: Path) -> None:
    two = list(class_pictures(model, "a boat", 2, tmp_path / "class"))
    before = [path.read_bytes() for path in two]
    three = list(class_pictures(model, "a boat", 3, tmp_path / "class"))
    assert [path.read_bytes() for path in three[:2]] == before
    assert len(three) == 3
    assert len(list(class_pictures(model, "a boat", 2, tmp_path / "class"))) == 2


def test_class_pictures_of_other_prompts_models_or_settings_are_not_used(
    tiny_model: Callable[..., StableDiffusion], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They stay in the folder; photographs, which carry no request, are used."""
    tiny_model("sd1").save(tmp_path / "model")
    model, folder = load(tmp_path / "model", dtype="fp32", plain=True), tmp_path / "class"
    first = class_pictures(model, "a boat", 2, folder)
    result = [path.read_bytes() for path in first]
    for note, other, prompt in (
        ("the prompt 'a boat'", model, "a cat"),
        ("the width 64", replace(model, defaults=replace(model.defaults, width=128)), "a boat"),
        ("the model model [", load(another_model(model, tmp_path / "second"), dtype="fp32"), "a boat"),
    ):
        caplog.clear()
        there = shutil.copytree(folder, tmp_path / f"class of {note}")
        drawn = class_pictures(other, prompt, 2, there)
        assert f"not of the class {prompt!r} stay there and are not used (2: 0000.png has {note}" in caplog.text
        assert [path.name for path in drawn] == ["0000-2.png", "0001-2.png"]
        assert [(there / path.name).read_bytes() for path in first] == result
        assert class_pictures(other, prompt, 2, there) == drawn
    caplog.clear()
    Image.new("RGB", (64, 64), "red").save(folder / "photograph.jpg")
    assert class_pictures(model, "a boat", 3, folder) == [folder / "photograph.jpg", *first]
    assert "do not say what they show are taken for the class 'a boat' (1: photograph.jpg)" in caplog.text


def another_model(model: StableDiffusion, folder: Path) -> Path:
    """A model with other weights."""
    unet = copy.deepcopy(model.unet)
    unet.conv_in.bias.data += 1
    replace(model, unet=unet).save(folder)
    return folder
