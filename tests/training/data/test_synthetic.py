"""Scenes of icons: a picture shows what its caption says, and recipes choose sizes, styles and things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gradina
from gradina.errors import RecipeError
from gradina.models.clip_vision import ConvConfig
from gradina.tasks.retrieval import open_pair
from gradina.training.data.dataset import generator
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import BACKGROUND_NAMES, BACKGROUNDS, RELATIONS, IconScenes
from gradina.training.loop import Settings
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import DataRecipe, IconsRecipe, Recipe, VisionRecipe, read_recipe
from gradina.training.pretrain.run import run
from gradina.training.pretrain.stages import stage as stage_of

from .conftest import STYLES, THINGS


def test_pictures_are_deterministic_on_their_background(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=0.0)
    rows = torch.arange(len(data))
    pixels = data.pixels(rows)
    assert pixels.shape == (len(data), 3, 32, 32)
    assert torch.equal(pixels, icon_scenes(scenes=0.0).pixels(rows))
    for i, ground in enumerate(data.plan["background"].tolist()):
        expected = torch.tensor(BACKGROUNDS[BACKGROUND_NAMES[ground]]) / 127.5 - 1
        assert torch.allclose(pixels[i, :, 0, 0], expected) or data.icons.things[data.plan["first"][i]] == 0
    assert set(data.plan["background"].tolist()) == set(range(len(BACKGROUNDS)))


def test_smallest_scale(icon_scenes: Callable[..., IconScenes]) -> None:
    for smallest in (0.5, 0.9):
        sizes = icon_scenes(scenes=0.0, variants=64, smallest=smallest).plan["scale"]
        assert smallest <= sizes.min() < smallest + 0.02
        assert 0.96 < sizes.max() <= 0.98


def test_captions_describe_the_picture(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=0.3)
    rows = torch.arange(len(data))
    texts, _ = data.captions(rows, generator(1))
    for row, text in zip(rows.tolist(), texts, strict=True):
        plan = {name: values[row] for name, values in data.plan.items()}
        calls = data.words.wordings[int(data.icons.things[plan["first"]])]
        assert any(text.startswith((call, call.partition(" ")[2])) for call in calls), text
        ground = BACKGROUND_NAMES[int(plan["background"])]
        assert text.endswith(f"{ground} background") or (ground == "white" and "background" not in text)
        if plan["second"] >= 0:
            other = data.words.wordings[int(data.icons.things[plan["second"]])][0]
            assert f" {RELATIONS[int(plan['relation'])]} {other}" in text
        if "style" in text:
            assert f"in {STYLES[int(data.icons.styles[plan['first']])]} style" in text


def test_captions_match_equal_pictures_alone(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=0.2)
    rows = torch.arange(len(data))
    texts, true = data.captions(rows, generator(2))
    assert true.diagonal().all()
    first, second = data.plan["first"], data.plan["second"]
    for i, j in true.nonzero().tolist():
        if i == j:
            continue
        assert data.icons.things[first[i]] == data.icons.things[first[j]]
        assert data.plan["background"][i] == data.plan["background"][j]
        assert second[i] == second[j] == -1
        assert "style" not in texts[i] or data.icons.styles[first[i]] == data.icons.styles[first[j]]
    assert true.sum() > len(rows)


def test_relation_of_two_things(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=1.0, variants=64)
    left_of = ((data.plan["relation"] == RELATIONS.index("left of")) & (data.plan["second"] >= 0)).nonzero()[:, 0]
    checked = 0
    for row in left_of.tolist():
        first, second = int(data.plan["first"][row]), int(data.plan["second"][row])
        if data.icons.styles[first] == data.icons.styles[second] or data.plan["background"][row] != 0:
            continue
        pixels = data.pixels(torch.tensor([row]))[0]
        red, blue = (pixels[2] < -0.5).nonzero()[:, 1], (pixels[0] < -0.5).nonzero()[:, 1]
        if data.icons.styles[first] == 0:
            assert red.float().mean() < blue.float().mean()
        else:
            assert blue.float().mean() < red.float().mean()
        checked += 1
    assert checked > 3


def test_pairs_split_has_more_styles_and_mirror_images(icon_scenes: Callable[..., IconScenes]) -> None:
    fields = {"styles": STYLES[:1], "more_styles": STYLES[1:], "scenes": 0.3}
    drawn, seen = icon_scenes("train", **fields), icon_scenes("pairs", **fields)
    assert drawn.icons.styles.unique().tolist() == [0]
    assert seen.icons.styles.unique().tolist() == [0, 1]
    assert not drawn.plan["mirror"].any()
    mirrored = seen.plan["mirror"]
    assert 0.2 < mirrored.float().mean() < 0.6
    assert not (mirrored & (seen.plan["second"] >= 0)).any(), "left of stays left of"
    row = int((mirrored & (seen.plan["offset"][:, 0].abs() > 0.02) & (seen.plan["scale"] < 0.8)).nonzero()[0])
    as_placed = replace(seen, mirrored=False)._picture(row)
    assert torch.equal(seen._picture(row), as_placed.flip(2))
    assert not torch.equal(seen._picture(row), as_placed)


def test_augmentation_by_0_degrees_changes_edges_alone(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes("pairs", scenes=0.4)
    rows = torch.arange(len(data))
    assert (data.plan["second"] < 0).any()
    assert (data.plan["second"] >= 0).any()
    apart = (data.augmented(rows, 0.0, generator(1)) - data.pixels(rows)).abs().flatten(1).mean(1)
    assert apart.max() < 0.12, "edges lie between pixels, nothing else"
    other = (data.augmented(rows, 0.0, generator(1)) - data.pixels(rows.flip(0))).abs().flatten(1).mean(1)
    assert other.mean() > 0.3


def test_augmentation_rotates_and_tints_on_the_same_background(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes("pairs", scenes=0.0)
    rows = torch.full(
        (64,), int(((data.plan["background"] == 0) & (data.icons.things[data.plan["first"]] == 3)).nonzero()[0])
    )
    seen = data.augmented(rows, 20.0, generator(2))
    assert torch.equal(seen, data.augmented(rows, 20.0, generator(2)))
    assert not torch.equal(seen, data.augmented(rows, 20.0, generator(3)))
    assert (seen[:, :, 0, 0] == 1).all(), "white stays white"
    middles = seen[:, :, 16, 16]
    assert middles.std(dim=0).max() > 0.1, "tints differ"
    assert seen.min() >= -1
    assert seen.max() <= 1
    shares = ((seen - 1).abs().amax(dim=1) > 0.3).float().mean((1, 2))
    assert shares.std() > 0.02, "sizes differ"


def test_contrastive_rows_are_pairs_of_one_thing(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=0.0)
    rows = data.contrastive_rows(65, generator(4))
    assert len(rows) == 65
    things, styles = (
        values[data.plan["first"][rows[:64]]].view(32, 2) for values in (data.icons.things, data.icons.styles)
    )
    assert (things[:, 0] == things[:, 1]).all()
    assert len(things[:, 0].unique()) == len(THINGS)
    assert 0.2 < (styles[:, 0] != styles[:, 1]).float().mean() < 0.8


def test_recipe_errors_are_named(icon_scenes: Callable[..., IconScenes], tmp_path: Path) -> None:
    many = IconsRecipe(styles=STYLES, count=9, things=THINGS)
    too_many = DataRecipe(source="icons", folders=("a", "b"), icons=many)
    too_few = DataRecipe(source="icons", folders=("a",), icons=replace(many, count=1))
    recipe = read_recipe(tmp_path / "tiny.toml")
    with pytest.raises(RecipeError, match=r"data\.icons\.count: got 9, expected 1 to 6"):
        load_dataset(replace(recipe, data=too_many))
    with pytest.raises(RecipeError, match=r"data\.icons\.styles: got 2, expected one for each of 1 packages"):
        load_dataset(replace(recipe, data=too_few))
    with pytest.raises(RecipeError, match=r"data\.icons\.smallest: got 1.2, expected a share of the side, up to 0.98"):
        icon_scenes(smallest=1.2)
    (tmp_path / "plain" / "icons.json").write_text("{")
    with pytest.raises(RecipeError, match=r"icons\.json: cannot be read"):
        icon_scenes()


def test_home_is_the_style_of_captions_without_one(icon_scenes: Callable[..., IconScenes]) -> None:
    """Where a caption names no style the picture is nearly always in that one; without, in any."""
    data = icon_scenes(scenes=0.0, variants=64)
    rows = torch.arange(len(data))

    def unnamed(data: IconScenes) -> list[str]:
        texts, _ = data.captions(rows, torch.Generator().manual_seed(0))
        styles = data.icons.styles[data.plan["first"]].tolist()
        return [data.styles[style] for text, style in zip(texts, styles, strict=True) if " style" not in text]

    default = data.styles[-1]
    share = unnamed(data).count(default) / len(unnamed(data))
    meant = unnamed(replace(data, default_style=default))
    assert meant.count(default) / len(meant) > 0.8 > 0.6 > share


def test_vision_stage_with_a_new_tower_and_more_styles(
    icon_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:  # fmt: skip
    recipe = icon_recipe(styles=STYLES[:1], variants=2)
    recipe = replace(recipe, data=replace(recipe.data, folders=recipe.data.folders[:1]))
    list(run(recipe, tmp_path / "run"))
    first = Experiment(recipe, tmp_path / "run")
    own = ConvConfig(size=32, widths=(4, 8, 16), projection=first.clip.vision.config.projection)
    vision = VisionRecipe(
        training=Settings(steps=4, batch=8, lr=1e-3, warmup=1), network=own,
        folders=(str(tmp_path / STYLES[1]),), styles=STYLES[1:], turned=10.0, kept=0.5,
    )  # fmt: skip
    recipe = replace(recipe, vision=vision)
    assert {progress.stage for progress in run(recipe, tmp_path / "run")} == {"vision"}
    experiment = Experiment(recipe, tmp_path / "run")
    wider = load_dataset(recipe.with_vision_data, "pairs")
    assert isinstance(wider, IconScenes)
    assert wider.styles == STYLES
    assert wider.icons.styles.unique().tolist() == [0, 1]
    assert experiment.pair.clip.vision.config == own
    assert open_pair(tmp_path / "run" / "model").clip.vision.config == own
    assert experiment.pair.clip.vision.norms[0].mean.abs().sum() > 0, "what its norms have seen comes along"
    drawn = gradina.load(tmp_path / "run" / "model", device="cpu", dtype="fp32").text.state_dict()
    paired = experiment.pair.clip.text.state_dict()
    moved = {name for name, value in drawn.items() if not torch.equal(paired[name], value)}
    assert not moved - {"projection.weight"}, "the pair's words are those that the U-Net reads"


def test_run_resumes_in_any_stage(icon_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Data are made when they are first asked for, whichever stage begins."""
    recipe, whole, parts = icon_recipe(variants=2), tmp_path / "whole", tmp_path / "parts"
    list(run(recipe, whole))
    for stage in ("vae", "clip", "unet"):
        running = run(recipe, parts)
        next(progress for progress in running if progress.stage == stage)
        running.close()
    list(run(recipe, parts))
    for part in ("unet", "vae", "text_encoder", "clip"):
        (one,), (other,) = ([*(folder / "model" / part).glob("*.safetensors")] for folder in (whole, parts))
        assert one.read_bytes() == other.read_bytes(), part


def test_phase_with_other_scales_and_offsets(icon_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The same things in the same order, on the same grounds, and so with the same words; larger, and in the middle."""
    recipe = icon_recipe()
    (phase,) = recipe.unet.training
    again = replace(phase, smallest=0.98, jitter=0.0)
    recipe = replace(recipe, unet=replace(recipe.unet, training=(phase, again)))
    list(run(recipe, tmp_path / "run"))
    experiment = Experiment(recipe, tmp_path / "run")
    wide, steady = experiment.latents()[0], experiment.latents(None, {"smallest": 0.98, "jitter": 0.0})[0]
    assert wide.shape == steady.shape
    assert (tmp_path / "run" / "latents-smallest-0.98-places-0.safetensors").is_file()
    icons = len(experiment.data.icons)  # type: ignore[attr-defined]
    plan = experiment.data.plan  # type: ignore[attr-defined]
    same = [row for row in range(0, len(wide), icons) if plan["background"][row] == 0 and plan["second"][row] < 0]
    assert len(same) > 1
    assert steady[same].var(0).mean() < 0.01 * wide[same].var(0).mean()
    stages = [stage_of(experiment, name) for name in ("unet", "unet-2")]
    losses = [made.loss(stages[0].network, 0).mean().item() for made in stages]
    assert losses[0] != losses[1]


def test_phase_with_the_first_things_alone(
    icon_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what the model draws in the end: its card names no others, though it has words for all."""
    recipe = icon_recipe(scenes=0.5)
    (phase,) = recipe.unet.training
    assert recipe.drawn == recipe
    recipe = replace(recipe, unet=replace(recipe.unet, training=(phase, replace(phase, classes=2))))
    data, drawn = load_dataset(recipe), load_dataset(recipe.drawn)
    assert isinstance(data, IconScenes)
    assert isinstance(drawn, IconScenes)
    assert (len(data.words.names), drawn.words.names) == (6, ("red-apple", "owl"))
    shown = data.rows_of_first(2)
    things = data.icons.things[torch.stack([data.plan["first"], data.plan["second"]])]
    alone = data.plan["second"] < 0
    assert ((things[0] < 2) & (alone | (things[1] < 2))).nonzero()[:, 0].tolist() == shown.tolist()
    assert 0 < len(shown) < len(data) / 3

    list(run(recipe, tmp_path / "run"))
    asked: list[Tensor] = []
    made = stage_of(Experiment(recipe, tmp_path / "run"), "unet-2")
    monkeypatch.setattr(
        IconScenes, "captions", lambda data, rows, key: (asked.append(rows), ([""] * len(rows), rows))[1]
    )
    for k in range(20):
        made.loss(made.network, k)
    assert set(torch.cat(asked).tolist()) <= set(shown.tolist())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "It has words for 2 things: a red apple, an owl." in card
