"""The shipped `digits` model: its size, its recipe, parity with diffusers, and the figures on its card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import card_text

import gradina
from gradina.pipeline.model import StableDiffusion
from gradina.weights.registry import shipped

ROOT = Path(__file__).parents[2]
FIGURES = json.loads((ROOT / "evaluation" / "digits.json").read_text())


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return gradina.load("digits")


def test_size_and_components(model: StableDiffusion) -> None:
    folder = shipped()["digits"]
    assert model.name == "digits"
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 8_000_000
    assert {"text_encoder", "tokenizer", "unet", "vae", "scheduler"} <= {p.name for p in folder.iterdir()}


def test_configuration_equals_the_recipe(model: StableDiffusion) -> None:
    from gradina.training.pretrain.recipes import read_recipe

    recipe = read_recipe(ROOT / "recipes" / "digits.toml")
    assert model.defaults == recipe.defaults
    assert model.prediction == recipe.unet.prediction
    assert model.unet.config.widths == recipe.unet.network.widths
    assert model.vae.config.widths == recipe.vae.network.widths


def test_card_has_the_measured_figures() -> None:
    card = (shipped()["digits"] / "README.md").read_text()
    assert FIGURES["pictures"] == 500
    assert FIGURES["recognised"] >= 0.97
    assert card_text(FIGURES) in card
    assert "recipes/digits.toml" in card


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pictures_equal_diffusers(model: StableDiffusion) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(shipped()["digits"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a handwritten seven", "the digit 4"]
    theirs = pipe(
        prompts,
        num_inference_steps=20,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(s) for s in (1024, 1025)],
        output_type="np",
    ).images
    ours = [p.image for p in gradina.generate(model, gradina.Request(prompt=tuple(prompts), seed=1024))]
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(np.array(a).astype(int) - np.round(255 * b)).max() <= 1


def test_different_seeds_give_different_pictures(model: StableDiffusion) -> None:
    request = gradina.Request(prompt="a handwritten seven", seed=1, images=4)
    pictures = [np.array(p.image).astype(int) for p in gradina.generate(model, request)]
    assert all(np.abs(a - b).mean() > 2 for i, a in enumerate(pictures) for b in pictures[:i])
