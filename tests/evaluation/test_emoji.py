"""The shipped default model `emoji`: its size, its recipe, parity with diffusers, and the figures on its card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from emoji import table

import gradina
from gradina.apps.cli.main import main
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.retrieval import open_pair
from gradina.training.pretrain.recipes import Recipe, read_recipe
from gradina.weights.registry import shipped

ROOT = Path(__file__).parents[2]
FOLDER = shipped()["emoji"]
FIGURES = json.loads((ROOT / "evaluation" / "emoji.json").read_text())


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return gradina.load()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe(ROOT / "recipes" / "emoji.toml")


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_default_model_size_and_components(model: StableDiffusion) -> None:
    assert model.name == "emoji"
    assert {"text_encoder", "tokenizer", "unet", "vae", "scheduler", "clip"} <= {p.name for p in FOLDER.iterdir()}
    assert bytes_of(FOLDER / "clip") <= 15_000_000
    assert bytes_of(FOLDER) - bytes_of(FOLDER / "clip") <= 60_000_000


def test_configuration_equals_the_recipe(model: StableDiffusion, recipe: Recipe) -> None:
    assert model.defaults == recipe.defaults
    assert model.prediction == recipe.unet.prediction
    assert model.unet.config.widths == recipe.unet.network.widths
    assert model.vae.config.widths == recipe.vae.network.widths
    pixels = recipe.defaults.width * recipe.defaults.height * 3
    latents = pixels / model.vae.config.factor**2 / 3 * model.vae.config.latent_channels
    assert pixels / latents == 48


def test_card_has_the_measured_figures(recipe: Recipe) -> None:
    card = (FOLDER / "README.md").read_text()
    trained = FIGURES["trained pairs"]
    assert trained["pictures"] == 500
    for page in (card, (ROOT / "docs" / "emoji.md").read_text()):
        assert table(FIGURES) in page
    assert "recipes/emoji.toml" in card
    assert recipe.data.icons is not None
    assert f"{FIGURES['things']} things: a red apple, a dog face" in card
    assert recipe.drawn.data.icons is not None
    assert FIGURES["things"] == recipe.drawn.data.icons.count >= 150
    assert recipe.image_encoder is not None
    for package in (*recipe.data.packages, *recipe.image_encoder.packages):
        assert package in card


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("ddim", "DDIMScheduler"), ("dpmpp_2m", "DPMSolverMultistepScheduler")]
)
def test_pictures_equal_diffusers(model: StableDiffusion, sampler: str, scheduler: str) -> None:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    prompts = ("a teddy bear on a pink background", "an owl in noto style")
    theirs = pipe(
        list(prompts),
        num_inference_steps=model.defaults.steps,
        guidance_scale=model.defaults.guidance_scale,
        generator=[torch.Generator().manual_seed(s) for s in (1024, 1025)],
        output_type="np",
    ).images
    ours = [p.image for p in gradina.generate(model, gradina.Request(prompt=prompts, seed=1024, sampler=sampler))]
    for a, b in zip(ours, theirs, strict=True):
        assert a.size == (128, 128)
        assert np.abs(np.array(a).astype(int) - np.round(255 * b)).max() <= 1


def test_vocabulary_of_the_pair_fits_the_tokenizer(model: StableDiffusion, recipe: Recipe) -> None:
    pair = open_pair("emoji")
    names, styles, grounds = pair.phrases
    assert recipe.data.icons is not None
    assert (len(names), len(styles), len(grounds)) == (recipe.data.icons.count, 5, 12)
    longest = f"{max(names, key=len)} in fluent-emoji-flat style on an orange background"
    assert len(model.tokenizer.ids(longest)) <= model.tokenizer.length


def test_background_colours_are_those_of_the_prompt(model: StableDiffusion) -> None:
    colours = {"red": (220, 38, 38), "blue": (48, 104, 230), "yellow": (250, 214, 50), "black": (16, 16, 16)}
    prompts = tuple(f"a key on a {name} background" for name in colours)
    pictures = gradina.generate(model, gradina.Request(prompt=(*prompts, "a key"), seed=5, steps=12))
    for picture, colour in zip(pictures, (*colours.values(), (255, 255, 255)), strict=True):
        rim = np.asarray(picture.image).astype(int)[:2].reshape(-1, 3)
        assert np.abs(np.median(rim, axis=0) - colour).max() < 40


def test_different_seeds_give_different_pictures(model: StableDiffusion) -> None:
    request = gradina.Request(prompt="a rocket", seed=1, images=4, steps=12)
    pictures = [np.array(p.image).astype(int) for p in gradina.generate(model, request)]
    assert all(np.abs(a - b).mean() > 2 for i, a in enumerate(pictures) for b in pictures[:i])


def test_command_line_generates_captions_and_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    assert main(["a red apple on a white background", "--seed", "3", "-o", "pictures/apple.png", "--quiet"]) == 0
    assert main(["a crown on a blue background", "--seed", "3", "-o", "pictures/crown.png", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["caption", "pictures/crown.png", "--quiet"]) == 0
    assert "on a blue background" in capsys.readouterr().out
    assert main(["search", "pictures", "a picture on a blue background", "--quiet"]) == 0
    assert "crown.png" in capsys.readouterr().out.splitlines()[0]


def test_generate_and_steps_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = gradina.load()
    # fmt: off
    request = gradina.Request(prompt="a teddy bear on a pink background", negative_prompt="", steps=20,
                              guidance_scale=3.0, sampler="ddim", schedule="trailing", seed=1024,
                              width=128, height=128, images=4)
    # fmt: on
    for picture in gradina.generate(model, request):
        picture.save(f"{picture.seed}.png")
    records = []
    for step in gradina.steps(model, request):
        records.append((step.i, step.sigma, tuple(step.x.shape)))
        assert len(model.decode(step.denoised)) == 4
    assert [i for i, *_ in records] == list(range(20))
    assert [sigma for _, sigma, _ in records] == sorted((sigma for _, sigma, _ in records), reverse=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{s}.png" for s in range(1024, 1028)]
