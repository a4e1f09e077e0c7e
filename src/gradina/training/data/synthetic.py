"""Pictures composed of icons: a thing, in a style, on a coloured ground, sometimes two things; and the words for it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.errors import RecipeError
from gradina.training.data.batches import Split
from gradina.training.data.icons import Icons, Vocabulary, rendered, vocabulary, with_article
from gradina.training.pretrain.recipes import Recipe

log = logging.getLogger(__name__)

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "black": (16, 16, 16), "gray": (128, 128, 128), "red": (220, 38, 38),
    "orange": (249, 130, 30), "yellow": (250, 214, 50), "green": (46, 160, 67), "blue": (48, 104, 230),
    "purple": (138, 60, 205), "pink": (247, 150, 195), "brown": (125, 78, 42),
}  # fmt: skip
GROUND_NAMES = tuple(GROUNDS)
GROUND_WORDINGS = (" on {} background", " with {} background", ", {1} background")
LARGEST = 0.98  # side of a thing, as a share of the picture's
PAIRED = 0.48  # the same, of each of two
NAMED, NAMED_ABROAD = 0.6, 0.97  # how often a caption names the style, and where it is not the one that is meant
RELATIONS = ("and", "left of", "right of", "above", "below")


@dataclass(frozen=True)
class Composed:
    """A data set of pictures made of icons, each always the same: rows 0, 1, ... in the order in which they were drawn.

    `captions` words a picture anew each time it is asked.
    """

    icons: Icons
    words: Vocabulary
    styles: tuple[str, ...]
    variants: int
    scenes: float
    seed: int
    mirrored: bool = False  # whether half of the pictures of one thing are
    smallest: float = 0.7  # side of a thing alone, as a share of the picture's
    places: float = 0.12  # how far from the middle, as a share of the side
    home: str | None = None  # style that is meant where none is named, nearly always; None: any

    def __len__(self) -> int:
        return self.variants * len(self.icons)

    @property
    def size(self) -> int:
        """Of a picture, in pixels."""
        return self.icons.pictures.shape[-1]

    @cached_property
    def plan(self) -> dict[str, Tensor]:
        """What is in each picture: icon, ground, scale and place; a second icon (-1: none) and their relation."""
        key = torch.Generator().manual_seed(self.seed)
        n, count = len(self), len(self.icons)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=key)

        first = torch.arange(n) % count
        second = torch.where(draw(n) < self.scenes, (draw(n) * count).long(), -1)
        second = second.masked_fill(self.icons.things[second] == self.icons.things[first], -1)
        return {
            "first": first,
            "second": second,
            "relation": (draw(n) * len(RELATIONS)).long(),
            "ground": torch.where(draw(n) < 0.3, 0, (draw(n) * len(GROUNDS)).long()),
            "scale": self.smallest + (LARGEST - self.smallest) * draw(n),
            "place": (2 * draw(n, 2) - 1) * self.places,
            "mirror": (draw(n) < 0.5 * self.mirrored) & (second < 0),
        }

    @cached_property
    def pictures(self) -> Tensor:
        """All of them, composed once: (n, 3, size, size) uint8."""
        log.info("composes %d pictures", len(self))
        all_of_them = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        for row, picture in enumerate(all_of_them):
            picture.copy_(self._picture(row).round())
        return all_of_them

    def pixels(self, rows: Tensor) -> Tensor:
        """The pictures of `rows` (b,) as (b, 3, size, size) in -1..1."""
        return self.pictures[rows].float() / 127.5 - 1

    def varied(self, rows: Tensor, degrees: float, key: torch.Generator) -> Tensor:
        """The pictures of `rows`, composed anew: icons turned by up to so many degrees, stretched and tinted by chance.

        Grounds stay what they are. (b, 3, size, size) in -1..1; with 0 degrees nothing is left to chance.
        """
        plan = {name: values[rows] for name, values in self.plan.items()}
        grounds = torch.tensor([GROUNDS[name] for name in GROUND_NAMES]).float() / 255
        canvas = grounds[plan["ground"]][:, :, None, None].expand(-1, -1, self.size, self.size).clone()
        for which, icons, scales, middles in layers(plan):
            icon = tinted(premultiplied(self.icons.pictures[icons]), degrees / 40, key)
            layer = laid(icon, scales, middles, degrees, key)
            canvas[which] = canvas[which] * (1 - layer[:, 3:]) + layer[:, :3]
        mirrored = plan["mirror"][:, None, None, None]
        return 2 * torch.where(mirrored, canvas.flip(3), canvas) - 1

    def contrasts(self, count: int, key: torch.Generator) -> Tensor:
        """Rows in pairs of one thing: only its style and its ground tell the two apart."""
        chance = torch.rand(3, (count + 1) // 2, generator=key, dtype=torch.float64)
        one = (chance[0] * len(self)).long()
        kin = [self._kin[int(thing)] for thing in self.icons.things[self.plan["first"][one]]]
        icon = torch.tensor([int(of[int(c * len(of))]) for of, c in zip(kin, chance[1].tolist(), strict=True)])
        other = (chance[2] * self.variants).long() * len(self.icons) + icon
        return torch.stack([one, other], dim=1).flatten()[:count]

    def showing(self, things: int) -> Tensor:
        """The rows that show nothing but the first so many of the things."""
        first, second = (self.icons.things[self.plan[name]] < things for name in ("first", "second"))
        return (first & (second | (self.plan["second"] < 0))).nonzero()[:, 0]

    @cached_property
    def _kin(self) -> dict[int, Tensor]:
        """The icons of each thing."""
        things = self.icons.things
        return {thing: (things == thing).nonzero()[:, 0] for thing in set(things.tolist())}

    def _picture(self, row: int) -> Tensor:
        plan, side = {name: values[row : row + 1] for name, values in self.plan.items()}, self.size
        ground = torch.tensor(GROUNDS[GROUND_NAMES[int(plan["ground"])]]).float()
        canvas = ground[:, None, None].expand(3, side, side).clone()
        for _, icon, scale, middle in layers(plan):
            self._put(canvas, int(icon), float(scale), middle[0])
        return canvas.flip(2) if plan["mirror"] else canvas

    def _put(self, canvas: Tensor, icon: int, scale: float, at: Tensor) -> None:
        """Lays an icon over the canvas, its middle at `at` (x, y) in shares of the side."""
        side = round(scale * self.size)
        picture = self.icons.pictures[icon].float()
        alpha = picture[3:] / 255
        small = F.interpolate(torch.cat([picture[:3] * alpha, alpha])[None], side, mode="bilinear", antialias=True)[0]
        x, y = (max(0, min(self.size - side, round(float(a) * self.size - side / 2))) for a in at)
        part = canvas[:, y : y + side, x : x + side]
        part.mul_(1 - small[3:]).add_(small[:3])

    def captions(self, rows: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        """A caption for each picture, and of which of the pictures each is true, (b, b)."""
        said = torch.rand(len(rows), 6, generator=key)
        plan = {name: values[rows] for name, values in self.plan.items()}
        things, styles = self.icons.things[plan["first"]], self.icons.styles[plan["first"]]
        foreign = styles != (self.styles.index(self.home) if self.home else styles)
        style_said = (said[:, 1] < torch.where(foreign, NAMED_ABROAD, NAMED)) & (plan["second"] < 0)
        texts = [self._caption(plan, things, styles, style_said, said, i) for i in range(len(rows))]
        alone = plan["second"] < 0
        true = (things[:, None] == things) & (plan["ground"][:, None] == plan["ground"]) & alone & alone[:, None]
        true &= ~style_said[:, None] | (styles[:, None] == styles)
        return texts, true | torch.eye(len(rows), dtype=torch.bool)

    def _caption(
        self, plan: dict[str, Tensor], things: Tensor, styles: Tensor, style_said: Tensor, said: Tensor, i: int
    ) -> str:
        calls = self.words.calls[int(things[i])]
        text = calls[0] if said[i, 0] < 0.6 else calls[int(said[i, 2] * len(calls))]
        if plan["second"][i] >= 0:
            other = self.words.calls[int(self.icons.things[plan["second"][i]])][0]
            text = f"{text} {RELATIONS[int(plan['relation'][i])]} {other}"
        if said[i, 4] < 0.1:
            text = text.partition(" ")[2]  # without its article
        if style_said[i]:
            text += f" in {self.styles[int(styles[i])]} style"
        ground = GROUND_NAMES[int(plan["ground"][i])]
        if ground == "white" and said[i, 3] < 0.7:
            return text
        wording = 0 if said[i, 5] < 0.8 else 1 if said[i, 5] < 0.9 else 2
        return text + GROUND_WORDINGS[wording].format(with_article(ground), ground)

    def texts(self) -> list[str]:
        """Wordings from which a vocabulary can be learnt: all that a caption is made of."""
        calls = [call for kind in self.words.calls for call in kind]
        styles = [f"in {style} style" for style in self.styles]
        grounds = [f"on {with_article(ground)} background" for ground in GROUNDS]
        return [*calls, *(10 * [*styles, *grounds, *RELATIONS])]

    def phrases(self) -> tuple[tuple[str, ...], ...]:
        """A thing, perhaps its style, perhaps its ground."""
        styles = [f"in {style} style" for style in self.styles]
        grounds = [f"on {with_article(ground)} background" for ground in GROUNDS]
        return tuple(calls[0] for calls in self.words.calls), ("", *styles), ("", *grounds)

    def named(self, rows: Tensor) -> Tensor:
        """The thing in each picture, (b,); -1 where there are two."""
        return self.icons.things[self.plan["first"][rows]].masked_fill(self.plan["second"][rows] >= 0, -1)


def layers(plan: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What is laid over some planned pictures, in this order: over which of them, icons, scales, middles (x, y)."""
    two = plan["second"] >= 0
    slack = ((1 - plan["scale"]) / 2)[:, None]
    middles = torch.tensor([places_of(i) for i in range(len(RELATIONS))])[plan["relation"]]  # (b, 2, 2)
    first = torch.where(two[:, None], middles[:, 0], 0.5 + plan["place"].clamp(-slack, slack))
    scale = torch.where(two, PAIRED, plan["scale"])
    some = two.nonzero()[:, 0]
    of_all = torch.arange(len(two)), plan["first"], scale, first
    return [of_all, (some, plan["second"][some], scale[some], middles[some, 1])] if len(some) else [of_all]


def premultiplied(pictures: Tensor) -> Tensor:
    """Icons (b, 4, h, w) uint8 as 0..1, their colours times their alpha."""
    shares = pictures.float() / 255
    return torch.cat([shares[:, :3] * shares[:, 3:], shares[:, 3:]], dim=1)


def tinted(icons: Tensor, much: float, key: torch.Generator) -> Tensor:
    """Premultiplied icons, each with its hue turned by up to `much` radians, brighter or paler by up to that share."""
    hue, light, colour = much * (2 * torch.rand(3, len(icons), generator=key) - 1)
    along, across = torch.full((3, 3), 1 / 3), torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    wheel = hue.cos()[:, None, None] * (torch.eye(3) - along) + hue.sin()[:, None, None] * across
    colours = torch.einsum("bij,bjhw->bihw", along + (1 + colour)[:, None, None] * wheel, icons[:, :3])
    alpha = icons[:, 3:]
    return torch.cat([(colours + light[:, None, None, None] * alpha).clamp(min=0).minimum(alpha), alpha], dim=1)


def laid(icons: Tensor, scale: Tensor, middle: Tensor, degrees: float, key: torch.Generator) -> Tensor:
    """Icons (b, 4, h, w) in an empty picture: `scale` (b,) of its side, their middles at (x, y) `middle` (b, 2).

    Each is turned by up to so many degrees, and stretched by up to a hundredth of its side for each of them.
    """
    angle, wide, high = degrees * (2 * torch.rand(3, len(icons), generator=key) - 1)
    wide, high, angle = 1 + wide / 100, 1 + high / 100, angle.deg2rad()
    rows = torch.stack([angle.cos() * wide, -angle.sin() * wide, angle.sin() * high, angle.cos() * high], dim=1)
    turn = rows.view(-1, 2, 2) / scale[:, None, None]
    theta = torch.cat([turn, -turn @ (2 * middle - 1)[:, :, None]], dim=2)
    return F.grid_sample(icons, F.affine_grid(theta, list(icons.shape), align_corners=False), align_corners=False)


def places_of(relation: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the middles of the first and the second thing are."""
    left, right, up, down = (0.26, 0.5), (0.74, 0.5), (0.5, 0.26), (0.5, 0.74)
    return ((left, right), (left, right), (right, left), (up, down), (down, up))[relation]


def composed(recipe: Recipe, folders: list[Path], split: Split = "train") -> Composed:
    """The data set of a recipe whose source is icons.

    The styles to draw come first; the contrastive pair sees further ones, and mirror images.
    """
    made = recipe.data.icons
    if made is None:
        raise RecipeError("data.icons is missing: which styles, how many of which things")
    if len(made.styles) + len(made.more_styles) != len(folders):
        named = len(made.styles) + len(made.more_styles)
        raise RecipeError(f"data.icons.styles: got {named}, expected one for each of {len(folders)} packages")
    if not 0 < made.smallest <= LARGEST:
        raise RecipeError(f"data.icons.smallest: got {made.smallest}, expected a share of the side, up to {LARGEST}")
    if not 1 <= made.count <= len(made.things):
        raise RecipeError(f"data.icons.count: got {made.count}, expected 1 to {len(made.things)}, the things listed")
    words = vocabulary(made.things[: made.count])
    styles = made.styles + made.more_styles if split == "pairs" else made.styles
    sets = dict(zip(styles, folders, strict=False))
    drawn = rendered(words.names, sets, made.size, held=split == "held out")
    return Composed(drawn, words, styles, made.variants, made.scenes, recipe.seed, split == "pairs", made.smallest)
