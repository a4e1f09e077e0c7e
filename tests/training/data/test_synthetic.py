"""Scenes of icons: a picture shows what its caption says, and recipes choose sizes, styles and things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradina.errors import RecipeError
from gradina.training.data.dataset import generator
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import BACKGROUND_NAMES, BACKGROUNDS, RELATIONS, IconScenes
from gradina.training.pretrain.recipes import DataRecipe, IconsRecipe, read_recipe

from ..conftest import STYLES, THINGS


def test_pictures_are_deterministic_on_their_background(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=0.0)
    rows = torch.arange(len(data))
    pixels = data.pixels(rows)
    assert pixels.shape == (len(data), 3, 32, 32)
    assert torch.equal(pixels, icon_scenes(scenes=0.0).pixels(rows))
    for i, background in enumerate(data.plan["background"].tolist()):
        expected = torch.tensor(BACKGROUNDS[BACKGROUND_NAMES[background]]) / 127.5 - 1
        assert torch.allclose(pixels[i, :, 0, 0], expected) or data.icons.things[data.plan["first"][i]] == 0
    assert set(data.plan["background"].tolist()) == set(range(len(BACKGROUNDS)))


def test_smallest_scale(icon_scenes: Callable[..., IconScenes]) -> None:
    for smallest in (0.5, 0.9):
        sizes = icon_scenes(scenes=0.0, variants=64, smallest=smallest).plan["scale"]
        assert smallest <= sizes.min() < smallest + 0.02
        assert 0.96 < sizes.max() <= 0.98


def test_one_scale_where_smallest_is_largest(icon_scenes: Callable[..., IconScenes]) -> None:
    plan = replace(icon_scenes(scenes=0.0), smallest=0.75, largest=0.75, jitter=0.0).plan
    assert plan["scale"].unique().tolist() == [0.75]
    assert not plan["offset"].any()


def test_each_icon_is_on_every_background(icon_scenes: Callable[..., IconScenes]) -> None:
    data = replace(icon_scenes(scenes=0.25, variants=16), every_background=True)
    plan = data.plan
    for icon in range(len(data.icons)):
        single = (plan["first"] == icon) & (plan["second"] < 0)
        counts = plan["background"][single].bincount(minlength=len(BACKGROUNDS)).tolist()
        assert min(counts) >= 1
        assert sum(counts) >= 12, "three quarters of the pictures show one thing"


def test_two_things_in_one_style(icon_scenes: Callable[..., IconScenes]) -> None:
    for one_style in (False, True):
        data = replace(icon_scenes(scenes=1.0, variants=32), one_style=one_style)
        two = (data.plan["second"] >= 0).nonzero()[:, 0]
        assert len(two) > 20
        first, second = (data.icons.styles[data.plan[name][two]] for name in ("first", "second"))
        assert torch.equal(first, second) == one_style
        assert any("style" in text for text in data.captions(two, generator(3))[0]) == one_style


def test_captions_describe_the_picture(icon_scenes: Callable[..., IconScenes]) -> None:
    data = icon_scenes(scenes=0.3)
    rows = torch.arange(len(data))
    texts, _ = data.captions(rows, generator(1))
    for row, text in zip(rows.tolist(), texts, strict=True):
        plan = {name: values[row] for name, values in data.plan.items()}
        calls = data.words.wordings[int(data.icons.things[plan["first"]])]
        assert any(text.startswith((call, call.partition(" ")[2])) for call in calls), text
        background = BACKGROUND_NAMES[int(plan["background"])]
        assert text.endswith(f"{background} background") or (background == "white" and "background" not in text)
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
    data = replace(icon_scenes(scenes=1.0, variants=64), one_style=True)
    for relation, flipped in (("left of", False), ("right of", True)):
        plan = data.plan
        rows = ((plan["relation"] == RELATIONS.index(relation)) & (plan["second"] >= 0)).nonzero()[:, 0]
        assert len(rows) > 20
        for row in rows.tolist():
            drawn = data.pixels(torch.tensor([row]))[0]
            shown = (drawn - drawn[:, :1, :1]).abs().amax(0) > 0.1
            left, right = shown[:, :16].sum(), shown[:, 16:].sum()  # icons get smaller from thing to thing
            first, second = (int(data.icons.things[plan[name][row]]) for name in ("first", "second"))
            assert (left > right) == ((first < second) != flipped)


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
    styles = unnamed(replace(data, default_style=default))
    assert styles.count(default) / len(styles) > 0.8 > 0.6 > share
