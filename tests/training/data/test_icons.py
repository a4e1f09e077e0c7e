"""Pictures of icons: what is in them is what their captions say, and what is held out stays out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gradina
from gradina.errors import MissingExtra, RecipeError
from gradina.models.clip import ConvConfig
from gradina.tasks.retrieval import open_pair
from gradina.training.data import icons
from gradina.training.data.dataset import Split, generator
from gradina.training.data.icons import is_held_out, render_svg, with_article
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import BACKGROUND_NAMES, BACKGROUNDS, RELATIONS, IconScenes
from gradina.training.loop import Settings
from gradina.training.pretrain.experiment import Workshop
from gradina.training.pretrain.recipes import DataRecipe, IconsRecipe, Recipe, VisionRecipe, read_recipe
from gradina.training.pretrain.run import run
from gradina.training.pretrain.stages import stage as stage_of

THINGS = ("red-apple, apple", "owl", "teddy-bear, toy", "umbrella", "key", "unicorn")
STYLES = ("plain", "round")
COLOURS = {"plain": "#ff0000", "round": "#0000ff"}


@pytest.fixture
def of_icons(tmp_path: Path, recipe_file: Path) -> Callable[..., Recipe]:
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


@pytest.fixture
def made(of_icons: Callable[..., Recipe]) -> Callable[..., IconScenes]:
    """A data set of such squares."""

    def make(split: Split = "train", **fields: object) -> IconScenes:
        loaded = load_dataset(of_icons(**fields), split)
        assert isinstance(loaded, IconScenes)
        return loaded

    return make


def test_what_is_held_out_is_as_it_was_agreed() -> None:
    for style, name in (("noto", "teddy-bear"), ("twemoji", "owl"), ("fluent-emoji-flat", "key")):
        digest = int(hashlib.sha256(f"{style}/{name}".encode()).hexdigest(), 16)
        assert is_held_out(style, name) == (digest % 32 == 0)
    shares = [is_held_out("noto", str(i)) for i in range(3200)]
    assert 70 < sum(shares) < 130


@pytest.mark.parametrize(
    ("name", "words"),
    [("teddy-bear", "a teddy bear"), ("owl", "an owl"), ("red apple", "a red apple"), ("unicorn", "a unicorn")],
)
def test_things_have_their_article(name: str, words: str) -> None:
    assert with_article(name) == words


def test_an_icon_is_drawn_with_its_transparency() -> None:
    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 2" width="4" height="2">'
    svg = f'{box}<rect width="4" height="2"/></svg>'
    picture = render_svg(svg, 32)
    assert picture.shape == (4, 32, 32)
    assert (picture[3, 9:23] == 255).all(), "a wide icon keeps its shape"
    assert (picture[3, :7] == 0).all()


def test_trained_and_held_out_icons_are_all_icons_and_share_none(
    made: Callable[..., IconScenes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icons, "is_held_out", lambda style, name: (style, name) == ("round", "owl"))
    trained, held = made("train").icons, made("held out").icons
    assert len(trained) == len(STYLES) * len(THINGS) - 1
    assert (held.things.tolist(), held.styles.tolist()) == ([1], [1])
    assert (1, 1) not in zip(trained.things.tolist(), trained.styles.tolist(), strict=True)


def test_a_picture_is_always_the_same_and_its_corner_is_its_ground(made: Callable[..., IconScenes]) -> None:
    data = made(scenes=0.0)
    rows = torch.arange(len(data))
    pixels = data.pixels(rows)
    assert pixels.shape == (len(data), 3, 32, 32)
    assert torch.equal(pixels, made(scenes=0.0).pixels(rows))
    for i, ground in enumerate(data.plan["background"].tolist()):
        expected = torch.tensor(BACKGROUNDS[BACKGROUND_NAMES[ground]]) / 127.5 - 1
        assert torch.allclose(pixels[i, :, 0, 0], expected) or data.icons.things[data.plan["first"][i]] == 0
    assert set(data.plan["background"].tolist()) == set(range(len(BACKGROUNDS)))


def test_a_recipe_says_how_small_things_may_be(made: Callable[..., IconScenes]) -> None:
    for smallest in (0.5, 0.9):
        sizes = made(scenes=0.0, variants=64, smallest=smallest).plan["scale"]
        assert smallest <= sizes.min() < smallest + 0.02
        assert 0.96 < sizes.max() <= 0.98


def test_captions_say_what_is_in_the_picture(made: Callable[..., IconScenes]) -> None:
    data = made(scenes=0.3)
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


def test_a_caption_is_true_of_the_pictures_of_which_it_is_true(made: Callable[..., IconScenes]) -> None:
    data = made(scenes=0.2)
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


def test_two_things_are_where_the_words_say(made: Callable[..., IconScenes]) -> None:
    data = made(scenes=1.0, variants=64)
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


def test_the_contrastive_pair_sees_more_styles_and_mirror_images(made: Callable[..., IconScenes]) -> None:
    fields = {"styles": STYLES[:1], "more_styles": STYLES[1:], "scenes": 0.3}
    drawn, seen = made("train", **fields), made("pairs", **fields)
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


def test_varied_pictures_are_the_same_where_nothing_is_left_to_chance(made: Callable[..., IconScenes]) -> None:
    data = made("pairs", scenes=0.4)
    rows = torch.arange(len(data))
    assert (data.plan["second"] < 0).any()
    assert (data.plan["second"] >= 0).any()
    apart = (data.augmented(rows, 0.0, generator(1)) - data.pixels(rows)).abs().flatten(1).mean(1)
    assert apart.max() < 0.12, "edges lie between pixels, nothing else"
    other = (data.augmented(rows, 0.0, generator(1)) - data.pixels(rows.flip(0))).abs().flatten(1).mean(1)
    assert other.mean() > 0.3


def test_varied_pictures_are_turned_and_tinted_by_chance_on_the_same_ground(made: Callable[..., IconScenes]) -> None:
    data = made("pairs", scenes=0.0)
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


def test_the_pair_may_learn_on_with_a_tower_of_its_own_from_more_styles(
    of_icons: Callable[..., Recipe], tmp_path: Path
) -> None:  # fmt: skip
    recipe = of_icons(styles=STYLES[:1], variants=2)
    recipe = replace(recipe, data=replace(recipe.data, folders=recipe.data.folders[:1]))
    list(run(recipe, tmp_path / "run"))
    first = Workshop(recipe, tmp_path / "run")
    own = ConvConfig(size=32, widths=(4, 8, 16), projection=first.clip.vision.config.projection)
    vision = VisionRecipe(
        training=Settings(steps=4, batch=8, lr=1e-3, warmup=1), network=own,
        folders=(str(tmp_path / STYLES[1]),), styles=STYLES[1:], turned=10.0, kept=0.5,
    )  # fmt: skip
    recipe = replace(recipe, vision=vision)
    assert {progress.stage for progress in run(recipe, tmp_path / "run")} == {"vision"}
    shop = Workshop(recipe, tmp_path / "run")
    wider = load_dataset(shop.wider, "pairs")
    assert isinstance(wider, IconScenes)
    assert wider.styles == STYLES
    assert wider.icons.styles.unique().tolist() == [0, 1]
    assert shop.pair.clip.vision.config == own
    assert open_pair(tmp_path / "run" / "model").clip.vision.config == own
    assert shop.pair.clip.vision.norms[0].mean.abs().sum() > 0, "what its norms have seen comes along"
    drawn = gradina.load(tmp_path / "run" / "model", device="cpu", dtype="fp32").text.state_dict()
    paired = shop.pair.clip.text.state_dict()
    moved = {name for name, value in drawn.items() if not torch.equal(paired[name], value)}
    assert not moved - {"projection.weight"}, "the pair's words are those that the U-Net reads"


def test_contrasts_come_in_pairs_of_one_thing(made: Callable[..., IconScenes]) -> None:
    data = made(scenes=0.0)
    rows = data.contrastive_rows(65, generator(4))
    assert len(rows) == 65
    things, styles = (
        values[data.plan["first"][rows[:64]]].view(32, 2) for values in (data.icons.things, data.icons.styles)
    )
    assert (things[:, 0] == things[:, 1]).all()
    assert len(things[:, 0].unique()) == len(THINGS)
    assert 0.2 < (styles[:, 0] != styles[:, 1]).float().mean() < 0.8


def test_a_run_goes_on_in_any_stage(of_icons: Callable[..., Recipe], tmp_path: Path) -> None:
    """Data are made when they are first asked for, whichever stage begins."""
    recipe, whole, parts = of_icons(variants=2), tmp_path / "whole", tmp_path / "parts"
    list(run(recipe, whole))
    for stage in ("vae", "clip", "unet"):
        running = run(recipe, parts)
        next(progress for progress in running if progress.stage == stage)
        running.close()
    list(run(recipe, parts))
    for part in ("unet", "vae", "text_encoder", "clip"):
        (one,), (other,) = ([*(folder / "model" / part).glob("*.safetensors")] for folder in (whole, parts))
        assert one.read_bytes() == other.read_bytes(), part


def test_mistakes_in_the_recipe_are_named(made: Callable[..., IconScenes], tmp_path: Path) -> None:
    many = IconsRecipe(styles=STYLES, count=9, things=THINGS)
    too_many = DataRecipe(source="icons", folders=("a", "b"), icons=many)
    too_few = DataRecipe(source="icons", folders=("a",), icons=replace(many, count=1))
    recipe = read_recipe(tmp_path / "tiny.toml")
    with pytest.raises(RecipeError, match=r"data\.icons\.count: got 9, expected 1 to 6"):
        load_dataset(replace(recipe, data=too_many))
    with pytest.raises(RecipeError, match=r"data\.icons\.styles: got 2, expected one for each of 1 packages"):
        load_dataset(replace(recipe, data=too_few))
    with pytest.raises(RecipeError, match=r"data\.icons\.smallest: got 1.2, expected a share of the side, up to 0.98"):
        made(smallest=1.2)
    (tmp_path / "plain" / "icons.json").write_text("{")
    with pytest.raises(RecipeError, match=r"icons\.json: cannot be read"):
        made()


def test_without_resvg_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"pip install 'gradina\[train\]'"):
        render_svg("<svg/>", 8)


def test_a_phase_of_the_unet_may_put_things_elsewhere(of_icons: Callable[..., Recipe], tmp_path: Path) -> None:
    """The same things in the same order, on the same grounds, and so with the same words; larger, and in the middle."""
    recipe = of_icons()
    (phase,) = recipe.unet.training
    again = replace(phase, smallest=0.98, places=0.0)
    recipe = replace(recipe, unet=replace(recipe.unet, training=(phase, again)))
    list(run(recipe, tmp_path / "run"))
    shop = Workshop(recipe, tmp_path / "run")
    wide, steady = shop.latents()[0], shop.latents(None, {"smallest": 0.98, "places": 0.0})[0]
    assert wide.shape == steady.shape
    assert (tmp_path / "run" / "latents-smallest-0.98-places-0.safetensors").is_file()
    icons = len(shop.data.icons)  # type: ignore[attr-defined]
    plan = shop.data.plan  # type: ignore[attr-defined]
    same = [row for row in range(0, len(wide), icons) if plan["background"][row] == 0 and plan["second"][row] < 0]
    assert len(same) > 1
    assert steady[same].var(0).mean() < 0.01 * wide[same].var(0).mean()
    stages = [stage_of(shop, name) for name in ("unet", "unet-2")]
    losses = [made.loss(stages[0].network, 0).mean().item() for made in stages]
    assert losses[0] != losses[1]


def test_a_phase_of_the_unet_may_show_the_first_of_the_things_alone(
    of_icons: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what the model draws in the end: its card names no others, though it has words for all."""
    recipe = of_icons(scenes=0.5)
    (phase,) = recipe.unet.training
    assert recipe.drawn == recipe
    recipe = replace(recipe, unet=replace(recipe.unet, training=(phase, replace(phase, things=2))))
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
    made = stage_of(Workshop(recipe, tmp_path / "run"), "unet-2")
    monkeypatch.setattr(
        IconScenes, "captions", lambda data, rows, key: (asked.append(rows), ([""] * len(rows), rows))[1]
    )
    for k in range(20):
        made.loss(made.network, k)
    assert set(torch.cat(asked).tolist()) <= set(shown.tolist())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "It has words for 2 things: a red apple, an owl." in card


def test_a_style_may_be_meant_where_none_is_named(made: Callable[..., IconScenes]) -> None:
    """Where a caption names no style the picture is nearly always in that one; without, in any."""
    data = made(scenes=0.0, variants=64)
    rows = torch.arange(len(data))

    def unnamed(data: IconScenes) -> list[str]:
        texts, _ = data.captions(rows, torch.Generator().manual_seed(0))
        styles = data.icons.styles[data.plan["first"]].tolist()
        return [data.styles[style] for text, style in zip(texts, styles, strict=True) if " style" not in text]

    home = data.styles[-1]
    share = unnamed(data).count(home) / len(unnamed(data))
    meant = unnamed(replace(data, home=home))
    assert meant.count(home) / len(meant) > 0.8 > 0.6 > share
