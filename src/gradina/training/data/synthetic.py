"""Scenes composed of icons, with captions: a thing in a style on a coloured background, or two things side by side."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.errors import RecipeError
from gradina.training.data.dataset import Split
from gradina.training.data.icons import Icons, Vocabulary, render_icons, vocabulary, with_article
from gradina.training.pretrain.recipes import Recipe

log = logging.getLogger(__name__)

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "black": (16, 16, 16), "gray": (128, 128, 128), "red": (220, 38, 38),
    "orange": (249, 130, 30), "yellow": (250, 214, 50), "green": (46, 160, 67), "blue": (48, 104, 230),
    "purple": (138, 60, 205), "pink": (247, 150, 195), "brown": (125, 78, 42),
}  # fmt: skip
BACKGROUND_NAMES = tuple(BACKGROUNDS)
BACKGROUND_WORDINGS = (" on {} background", " with {} background", ", {1} background")
MAX_SCALE = 0.98  # side of a thing, as a fraction of the picture's
PAIR_SCALE = 0.48  # the same, of each of two
STYLE_NAMED, OTHER_STYLE_NAMED = 0.6, 0.97  # how often a caption names the style; the same where it is not the default
RELATIONS = ("and", "left of", "right of", "above", "below")
LEFT, RIGHT, UP, DOWN = (0.26, 0.5), (0.74, 0.5), (0.5, 0.26), (0.5, 0.74)  # (x, y) in fractions of the side
PAIR_CENTRES = ((LEFT, RIGHT), (LEFT, RIGHT), (RIGHT, LEFT), (UP, DOWN), (DOWN, UP))  # of two things, by relation


@dataclass(frozen=True)
class IconScenes:
    """A `Dataset` of pictures composed of icons, a row always the same, its caption worded at random each time."""

    icons: Icons
    words: Vocabulary
    styles: tuple[str, ...]
    variants: int
    scenes: float  # share of pictures of two things
    seed: int
    mirrored: bool = False  # half of the pictures of a single thing
    smallest: float = 0.7  # side of a single thing, as a fraction of the picture's
    largest: float = MAX_SCALE
    one_style: bool = False  # whether two things in a picture are in the same style, which captions may name
    every_background: bool = False  # each icon on each background, its other pictures on white; False: at random
    jitter: float = 0.12  # random offset from the centre, as a fraction of the side
    default_style: str | None = None  # that of most captions that name none; None: any

    def __len__(self) -> int:
        return self.variants * len(self.icons)

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""
        return self.icons.pictures.shape[-1]

    @cached_property
    def plan(self) -> dict[str, Tensor]:
        """The layout of each picture: icon, background, scale, offset; a second icon (-1: none) and their relation."""
        key = torch.Generator().manual_seed(self.seed)
        n, count = len(self), len(self.icons)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=key)

        first = torch.arange(n) % count
        chance, other = draw(n), draw(n)
        relation, white, background = (draw(n) * len(RELATIONS)).long(), draw(n), (draw(n) * len(BACKGROUNDS)).long()
        two, background = chance < self.scenes, torch.where(white < 0.3, 0, background)
        if self.every_background:
            variant, single = torch.arange(n) // count, round(self.variants * (1 - self.scenes))
            two = variant >= single
            background = torch.where(two, background, torch.where(variant < len(BACKGROUNDS), variant, 0))
        others = self._others_of_its_style(first, other) if self.one_style else (other * count).long()
        second = torch.where(two, others, -1)
        second = second.masked_fill(self.icons.things[second] == self.icons.things[first], -1)
        return {
            "first": first,
            "second": second,
            "relation": relation,
            "background": background,
            "scale": self.smallest + (self.largest - self.smallest) * draw(n),
            "offset": (2 * draw(n, 2) - 1) * self.jitter,
            "mirror": (draw(n) < 0.5 * self.mirrored) & (second < 0),
        }

    @cached_property
    def pictures(self) -> Tensor:
        """All pictures, composed once: (n, 3, size, size) uint8."""
        log.info("composing %d pictures", len(self))
        pictures = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        for row, picture in enumerate(pictures):
            picture.copy_(self._picture(row).round())
        return pictures

    def pixels(self, rows: Tensor) -> Tensor:
        return self.pictures[rows].float() / 127.5 - 1

    def augmented(self, rows: Tensor, degrees: float, key: torch.Generator) -> Tensor:
        """The pictures of `rows` composed again, as (b, 3, size, size) in -1..1, with each icon augmented.

        Icons are randomly rotated by up to `degrees`, stretched and tinted; backgrounds stay the same.
        """
        plan = {name: values[rows] for name, values in self.plan.items()}
        backgrounds = torch.tensor([BACKGROUNDS[name] for name in BACKGROUND_NAMES]).float() / 255
        canvas = backgrounds[plan["background"]][:, :, None, None].expand(-1, -1, self.size, self.size).clone()
        for rows_below, icons, scales, centres in layers(plan):
            icon = jitter_colour(premultiply(self.icons.pictures[icons]), degrees / 40, key)
            layer = place(icon, scales, centres, degrees, key)
            canvas[rows_below] = canvas[rows_below] * (1 - layer[:, 3:]) + layer[:, :3]
        mirrored = plan["mirror"][:, None, None, None]
        return 2 * torch.where(mirrored, canvas.flip(3), canvas) - 1

    def contrastive_rows(self, count: int, key: torch.Generator) -> Tensor:
        """Rows in pairs of the same thing, which differ in style and background alone."""
        chance = torch.rand(3, (count + 1) // 2, generator=key, dtype=torch.float64)
        one = (chance[0] * len(self)).long()
        alike = [self._icons_of[int(thing)] for thing in self.icons.things[self.plan["first"][one]]]
        icon = torch.tensor([int(of[int(c * len(of))]) for of, c in zip(alike, chance[1].tolist(), strict=True)])
        other = (chance[2] * self.variants).long() * len(self.icons) + icon
        return torch.stack([one, other], dim=1).flatten()[:count]

    def rows_of_first(self, things: int) -> Tensor:
        """The rows that show only the first so many things."""
        first, second = (self.icons.things[self.plan[name]] < things for name in ("first", "second"))
        return (first & (second | (self.plan["second"] < 0))).nonzero()[:, 0]

    @cached_property
    def _icons_of(self) -> dict[int, Tensor]:
        """The icons of each thing."""
        things = self.icons.things
        return {thing: (things == thing).nonzero()[:, 0] for thing in set(things.tolist())}

    def _others_of_its_style(self, icons: Tensor, chance: Tensor) -> Tensor:
        """For each icon (n,) one of the same style; `chance` (n,), from 0 to 1, decides which."""
        others = torch.empty_like(icons)
        for style in range(len(self.styles)):
            same, own = (self.icons.styles == style).nonzero()[:, 0], self.icons.styles[icons] == style
            if len(same):
                others[own] = same[(chance[own] * len(same)).long()]
        return others

    def _picture(self, row: int) -> Tensor:
        plan, side = {name: values[row : row + 1] for name, values in self.plan.items()}, self.size
        background = torch.tensor(BACKGROUNDS[BACKGROUND_NAMES[int(plan["background"])]]).float()
        canvas = background[:, None, None].expand(3, side, side).clone()
        for _, icon, scale, centre in layers(plan):
            size = round(float(scale) * side)
            picture = self.icons.pictures[int(icon)].float()
            alpha = picture[3:] / 255
            layer = torch.cat([picture[:3] * alpha, alpha])[None]
            layer = F.interpolate(layer, size, mode="bilinear", antialias=True)[0]
            x, y = (max(0, min(side - size, round(float(c) * side - size / 2))) for c in centre[0])
            canvas[:, y : y + size, x : x + size].mul_(1 - layer[3:]).add_(layer[:3])
        return canvas.flip(2) if plan["mirror"] else canvas

    def captions(self, rows: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        chance = torch.rand(len(rows), 6, generator=key)
        plan = {name: values[rows] for name, values in self.plan.items()}
        things, styles = self.icons.things[plan["first"]], self.icons.styles[plan["first"]]
        alone = plan["second"] < 0
        other = styles != (self.styles.index(self.default_style) if self.default_style else styles)
        style_named = chance[:, 1] < torch.where(other, OTHER_STYLE_NAMED, STYLE_NAMED)
        style_named &= alone | self.one_style
        texts = [self._caption(plan, things, styles, style_named, chance, i) for i in range(len(rows))]
        match = (things[:, None] == things) & (plan["background"][:, None] == plan["background"])
        match &= alone & alone[:, None] & (~style_named[:, None] | (styles[:, None] == styles))
        return texts, match | torch.eye(len(rows), dtype=torch.bool)

    def _caption(
        self, plan: dict[str, Tensor], things: Tensor, styles: Tensor, style_named: Tensor, chance: Tensor, i: int
    ) -> str:
        wordings = self.words.wordings[int(things[i])]
        text = wordings[0] if chance[i, 0] < 0.6 else wordings[int(chance[i, 2] * len(wordings))]
        if plan["second"][i] >= 0:
            other = self.words.wordings[int(self.icons.things[plan["second"][i]])][0]
            text = f"{text} {RELATIONS[int(plan['relation'][i])]} {other}"
        if chance[i, 4] < 0.1:
            text = text.partition(" ")[2]  # without its article
        if style_named[i]:
            text += f" in {self.styles[int(styles[i])]} style"
        background = BACKGROUND_NAMES[int(plan["background"][i])]
        if background == "white" and chance[i, 3] < 0.7:
            return text
        wording = 0 if chance[i, 5] < 0.8 else 1 if chance[i, 5] < 0.9 else 2
        return text + BACKGROUND_WORDINGS[wording].format(with_article(background), background)

    def texts(self) -> list[str]:
        wordings = [wording for wordings in self.words.wordings for wording in wordings]
        _, (_, *styles), (_, *backgrounds) = self.phrases()
        return [*wordings, *(10 * [*styles, *backgrounds, *RELATIONS])]

    def phrases(self) -> tuple[tuple[str, ...], ...]:
        """A thing, optionally its style, optionally its background."""
        styles = [f"in {style} style" for style in self.styles]
        backgrounds = [f"on {with_article(name)} background" for name in BACKGROUNDS]
        return tuple(names[0] for names in self.words.wordings), ("", *styles), ("", *backgrounds)

    def class_ids(self, rows: Tensor) -> Tensor:
        """The thing in each picture, (b,); -1 where there are two."""
        return self.icons.things[self.plan["first"][rows]].masked_fill(self.plan["second"][rows] >= 0, -1)


def layers(plan: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The layers of some planned pictures, bottom-up: the pictures that have it, icons, scales, centres (x, y)."""
    two = plan["second"] >= 0
    slack = ((1 - plan["scale"]) / 2)[:, None]
    centres = torch.tensor(PAIR_CENTRES)[plan["relation"]]  # (b, 2, 2)
    first = torch.where(two[:, None], centres[:, 0], 0.5 + plan["offset"].clamp(-slack, slack))
    scale = torch.where(two, PAIR_SCALE, plan["scale"])
    pairs = two.nonzero()[:, 0]
    bottom = torch.arange(len(two)), plan["first"], scale, first
    return [bottom, (pairs, plan["second"][pairs], scale[pairs], centres[pairs, 1])] if len(pairs) else [bottom]


def premultiply(pictures: Tensor) -> Tensor:
    """Icons (b, 4, h, w) uint8 as premultiplied RGBA in 0..1."""
    rgba = pictures.float() / 255
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)


def jitter_colour(icons: Tensor, amount: float, key: torch.Generator) -> Tensor:
    """Premultiplied icons with their hue rotated by up to `amount` radians, brightness and saturation scaled alike."""
    hue, light, colour = amount * (2 * torch.rand(3, len(icons), generator=key) - 1)
    grey_axis, rotation = torch.full((3, 3), 1 / 3), torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    chroma = hue.cos()[:, None, None] * (torch.eye(3) - grey_axis) + hue.sin()[:, None, None] * rotation
    colours = torch.einsum("bij,bjhw->bihw", grey_axis + (1 + colour)[:, None, None] * chroma, icons[:, :3])
    alpha = icons[:, 3:]
    return torch.cat([(colours + light[:, None, None, None] * alpha).clamp(min=0).minimum(alpha), alpha], dim=1)


def place(icons: Tensor, scale: Tensor, centre: Tensor, degrees: float, key: torch.Generator) -> Tensor:
    """Icons (b, 4, h, w) on a transparent canvas: `scale` (b,) in fractions of its side, `centre` (b, 2) as (x, y).

    Each is randomly rotated by up to `degrees`, and stretched by up to 1 % of its side per degree.
    """
    angle, wide, high = degrees * (2 * torch.rand(3, len(icons), generator=key) - 1)
    wide, high, angle = 1 + wide / 100, 1 + high / 100, angle.deg2rad()
    rows = torch.stack([angle.cos() * wide, -angle.sin() * wide, angle.sin() * high, angle.cos() * high], dim=1)
    linear = rows.view(-1, 2, 2) / scale[:, None, None]
    theta = torch.cat([linear, -linear @ (2 * centre - 1)[:, :, None]], dim=2)
    return F.grid_sample(icons, F.affine_grid(theta, list(icons.shape), align_corners=False), align_corners=False)


def icon_scenes(recipe: Recipe, folders: list[Path], split: Split = "train") -> IconScenes:
    """The dataset of a recipe whose source is icons, a folder for each style; raises RecipeError.

    The split "pairs", for contrastive training, has more styles, and mirror images.
    """
    icons = recipe.data.icons
    if icons is None:
        raise RecipeError("data.icons is missing: which styles, how many of which things")
    count = len(icons.styles) + len(icons.more_styles)
    if count != len(folders):
        raise RecipeError(f"data.icons.styles: got {count}, expected one for each of {len(folders)} packages")
    if not 0 < icons.smallest <= MAX_SCALE:
        raise RecipeError(f"data.icons.smallest: got {icons.smallest}, expected a share of the side, up to {MAX_SCALE}")
    if not 1 <= icons.count <= len(icons.things):
        raise RecipeError(f"data.icons.count: got {icons.count}, expected 1 to {len(icons.things)}, the things listed")
    words = vocabulary(icons.things[: icons.count])
    styles = icons.styles + icons.more_styles if split == "pairs" else icons.styles
    sets = dict(zip(styles, folders, strict=False))
    rendered = render_icons(words.names, sets, icons.size, held_out=split == "held out")
    return IconScenes(
        rendered, words, styles, icons.variants, icons.scenes, recipe.seed, split == "pairs", icons.smallest
    )
