"""Recipes: what is shipped can be read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradina.errors import RecipeError
from gradina.models.clip_vision import ConvConfig, VisionConfig
from gradina.training.pretrain.recipes import read_recipe

TEXT_ENCODER = (
    "[text_encoder]\nwidth = 10\nheads = 4\n[text_encoder.training]\nsteps = 1\nbatch = 1\nlr = 1e-3\n[defaults]"
)
TOWER = "[image_encoder.training]\nsteps = 1\nbatch = 1\nlr = 1e-3\n[image_encoder.network]\nsize = 32\n{}\n[defaults]"
SHIPPED = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_are_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.defaults.width % recipe.vae.network.factor == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 3", 'seed = "three"', "seed: got 'three', expected int"),
        ("seed = 3", "seed = true", "seed: got True, expected int"),
        ("seed = 3", "sead = 3", r"there is no sead \(known here: name, description, seed"),
        ("kl_weight = 1e-4", 'kl_weight = "much"', r"vae\.kl_weight: got 'much', expected float"),
        ("widths = [8, 8, 8, 8]", "widths = 8", r"vae\.network\.widths: got 8, expected a list"),
        ("widths = [8, 8, 8, 8]", 'widths = ["a"]', r"vae\.network\.widths\[0\]: got 'a', expected int"),
        ("size = 560\n", "", r"vocabulary\.size is missing"),
        ('sampler = "ddim"', 'sampler = "dim"', r"defaults\.sampler: got 'dim', expected one of ddpm, ddim"),
        ("[data]", "[data", "not a TOML file"),
        ("sample_every = 4", "sample_every = 0", "sample_every: got 0, expected more than 0"),
        ("batch = 4", "batch = 0", r"vae\.training\.batch: got 0, expected a number above 0"),
        ("batch = 4", "batch = 4\naccumulate = 0", r"vae\.training\.accumulate: got 0, expected a number above 0"),
        ("batch = 4", 'batch = 4\nprecision = "fp8"', r"vae\.training\.precision: got 'fp8', expected one of float32"),
        ("batch = 4", "batch = 4\nbetas = [0.9]", r"vae\.training\.betas: got \(0\.9,\), expected two numbers"),
        (
            "batch = 4",
            "batch = 4\nbetas = [0.9, 1.0]",
            r"vae\.training\.betas: got \(0\.9, 1\.0\), expected two numbers",
        ),
        ("groups = 4", "groups = 7", r"vae\.network: cannot be built \(num_channels"),
        ("widths = [8, 8, 8, 8]", "widths = []", r"vae\.network: cannot be built"),
        ("heads = [2, 2]", "heads = [2]", r"unet\.network: expected as many widths as entries of attention and heads"),
        ("heads = [2, 2]", "heads = [3, 2]", r"unet\.network\.heads: got \[3, 2\], expected divisors of \[8, 8\]"),
        ('prediction = "v"', 'prediction = "foo"', r"unet\.prediction: got 'foo', expected one of eps, v, x0"),
        (
            'prediction = "v"',
            'prediction = "v"\ncaption_dropout = 7',
            r"unet\.caption_dropout: got 7\.0, expected 0 to 1",
        ),
        ("lr = 1e-3", "lr = 1e-3\nresized = -1", r"vae\.training\.resized: got -1\.0, expected 0 to 1"),
        ("lr = 1e-3", 'lr = 1e-3\nonly = "encoder"', r"vae\.training\.only: got 'encoder', expected one of decoder"),
        (
            "[defaults]",
            TEXT_ENCODER,
            r"text_encoder\.width: got 10, expected a multiple of heads, 4",
        ),
        ("lr = 1e-3", 'lr = 1e-3\nonly = "decoder"', r"vae\.training\.only: in the first phase both halves"),
        (
            "warmup = 2\naccumulate = 2",
            "warmup = 2\ntext_rate = 2.0",
            r"unet\.training\.text_rate: got 2\.0, expected 0 to 1",
        ),
        ("accumulate = 2", "scenes = 1.5", "scenes: got 1.5, expected 0 to 1"),
        (
            "[defaults]",
            "[decoder.training]\nsteps = 1\nbatch = 1\nlr = 1e-3\nnoise_offset = 0.1\n\n[defaults]",
            r"decoder\.training\.noise_offset, min_snr: the decoder's losses have none",
        ),
        ("accumulate = 2", "jitter = 0.1", r"unet\.training\.jitter: for pictures that are composed of icons alone"),
        (
            "accumulate = 2",
            'default_style = "noto"',
            r"unet\.training\.default_style: got 'noto', expected one of the styles of data.icons",
        ),
        ("accumulate = 2", "shift = 0.0", r"unet\.training\.shift: got 0.0, expected more than 0"),
        (
            "accumulate = 2",
            "interval = [20.0, 30.0]",
            "interval: got 20 to 30, which holds no noise level; they go from",
        ),
        ("accumulate = 2", "interval = [2.0]", r"unet\.training\.interval: got \(2\.0,\), expected the lowest and the"),
        ("accumulate = 2", "min_snr = -1.0", r"unet\.training\.min_snr: got -1\.0, expected a number above 0"),
        ("accumulate = 2", "noise_offset = -1.0", r"unet\.training\.noise_offset: got -1\.0, expected 0, or a number"),
        ("accumulate = 2", "classes = 1", r"unet\.training\.classes: got 1, expected 1 to 0, those of data.icons"),
        ("accumulate = 2", "pixels = 12", r"unet\.training\.pixels: got 12, expected a multiple of 8"),
        ("accumulate = 2", 'pixels = "half"', r"unet\.training\.pixels: got 'half', expected int"),
        ("steps = 3", "steps = 4000", "steps: got 4000, expected a whole number from 1 to 1000"),
        ("size = 560", "size = 10", "vocabulary: expected a size of 514 tokens or more"),
        ("[defaults]", '[schedule]\nbeta_schedule = "odd"\n\n[defaults]', "beta_schedule: got 'odd', expected one of"),
        ("[defaults]", "[default]", r"there is no default "),
        (
            "[defaults]",
            TOWER.format("widths = []"),
            r"image_encoder\.network\.widths: got 0, expected one or more that 32 pix",
        ),
        ("[defaults]", TOWER.format("widths = [4, 4, 4, 4, 4, 4]"), r"image_encoder\.network\.widths: got 6"),
        ("[defaults]", TOWER.format("width = [4]"), r"image_encoder\.network\.width: got \[4\], expected int"),
        (
            "[defaults]",
            TOWER.format("widths = [4]\nprojection = 9"),
            r"image_encoder\.network\.projection: got 9, expected 16",
        ),
    ],
)
def test_what_is_wrong_is_named(recipe_file: Path, old: str, new: str, message: str) -> None:
    recipe_file.write_text(recipe_file.read_text().replace(old, new, 1))
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(recipe_file)
    assert str(caught.value).startswith(str(recipe_file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "kind"), [("widths = [4, 8]", ConvConfig), ("patch = 8\nwidth = 64", VisionConfig)])
def test_an_image_tower_is_the_kind_that_its_keys_say(recipe_file: Path, shape: str, kind: type) -> None:
    tower = TOWER.format(f"{shape}\nprojection = 16")
    recipe_file.write_text(recipe_file.read_text().replace("[defaults]", tower, 1))
    encoder = read_recipe(recipe_file).image_encoder
    assert encoder is not None
    assert type(encoder.network) is kind


FORMER = """
[words]
width = 16
heads = 2
[words.training]
steps = 1
batch = 1
lr = 1e-3
[vision]
kept = 0.5
turned = 10.0
[vision.training]
steps = 1
batch = 1
lr = 1e-3
"""


def test_former_keys_are_read(recipe_file: Path) -> None:
    plain = recipe_file.read_text().replace("[clip.text]", "[clip]\nnaming = true\n\n[clip.text]", 1)
    recipe_file.write_text(plain + FORMER)
    former = read_recipe(recipe_file)
    new = plain.replace("naming", "classification") + FORMER.replace("[words", "[text_encoder").replace(
        "[vision", "[image_encoder"
    ).replace("kept", "kept_patches").replace("turned", "rotation")
    recipe_file.write_text(new)
    assert read_recipe(recipe_file) == former
    assert former.clip.classification
    assert former.text_encoder is not None
    assert former.image_encoder is not None
    recipe_file.write_text(new + "\n[words]\nwidth = 8\n")
    with pytest.raises(RecipeError, match=r"text_encoder: given twice, also by its former key, words"):
        read_recipe(recipe_file)


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: there is no such recipe"):
        read_recipe("nowhere.toml")


def test_recipes_are_read_whatever_the_editor(recipe_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = read_recipe(recipe_file)
    for data in (b"\xef\xbb\xbf" + recipe_file.read_bytes(), recipe_file.read_text().encode("utf-16")):
        recipe_file.write_bytes(data.replace(b"\n", b"\r\n") if data.startswith(b"\xef") else data)
        assert read_recipe(recipe_file) == expected
    assert not caplog.messages
    recipe_file.write_text("a = " + "[" * 100_000)
    with pytest.raises(RecipeError, match=r"not a TOML file \(it is nested too deep\)"):
        read_recipe(recipe_file)
    recipe_file.write_bytes(b"\x89PNG\0")
    with pytest.raises(RecipeError, match="is not text in UTF-8"):
        read_recipe(recipe_file)
