"""Judges of emoji-like pictures: networks trained here on rendered icons, of no part of the model that they judge.

One tells things, from the icon sets of the recipe's data. Styles are told by a line-up: of the icons of a thing, one
in each style, which does the picture resemble most? A network gives a second opinion: it sees small patches of every
icon of the four sets, many more than the model has seen, so that it cannot know a style by the thing. The ground is
read from a picture's rim. No network has seen an icon that is held out, in that style.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.files import cache_folder
from gradina.training.checkpoint import cached_tensors
from gradina.training.data.dataset import augment, generator
from gradina.training.data.icons import Icons, read_icon_set, render_icons, vocabulary
from gradina.training.data.sources import npm_package
from gradina.training.data.synthetic import BACKGROUND_NAMES, BACKGROUNDS, IconScenes, premultiply
from gradina.training.pretrain.recipes import Recipe

SEED = 7
BATCH = 64
SIZES = (0.82, 0.86, 0.9, 0.94, 0.98)  # of icons in a line-up, as shares of the side
SHIFTS = range(-4, 5)  # and where they are, along each side, in pixels of pictures half as large


def block(width: int, out: int) -> nn.Module:
    """Half the side: (b, width, h, w) -> (b, out, h/2, w/2)."""
    return nn.Sequential(
        nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip


def network(kinds: int, widths: tuple[int, ...] = (16, 32, 64, 128, 192)) -> nn.Module:
    """A small convolutional classifier: (b, 3, 128, 128) -> (b, kinds)."""
    stem = (nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks = [block(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(widths[-1], kinds)
    )


def texture(kinds: int) -> nn.Module:
    """A classifier that sees patches of 17 pixels only, and lets them vote: it tells how, not what, is drawn."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 96, 3, stride=2, bias=False), nn.BatchNorm2d(96), nn.ReLU(),
        nn.Conv2d(96, 128, 2, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, kinds),
    )  # fmt: skip


@torch.no_grad()
def seen(judge: nn.Module, pixels: Tensor) -> Tensor:
    """The kind that a judge sees in each picture (n, 3, 128, 128) in -1..1: (n,)."""
    return torch.cat([judge(part).argmax(1) for part in torch.split(pixels, BATCH)])


def taught(made: nn.Module, data: IconScenes, kinds: Tensor, steps: int) -> nn.Module:
    """A classifier after so many steps over pictures that are turned and tinted anew each time; kept for the next time.

    `kinds` (icons,) says what there is to see in a picture of each icon.
    """
    key = hashlib.sha256(repr((made, steps, BATCH, SEED, torch.__version__, inspect.getsource(learnt))).encode())
    for part in (data.icons.pictures, kinds, *data.plan.values()):
        key.update(part.numpy().tobytes())
    path = cache_folder() / "judges" / f"{key.hexdigest()[:16]}.safetensors"
    made.load_state_dict(cached_tensors(path, key.hexdigest(), lambda: learnt(made, data, kinds, steps).state_dict()))
    return made.eval()


def learnt(made: nn.Module, data: IconScenes, kinds: Tensor, steps: int) -> nn.Module:
    """The same, not kept."""
    optimizer = torch.optim.AdamW(made.parameters(), 2e-3, weight_decay=0.05)
    fall = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    made.train()
    for step in range(steps):
        key = generator(SEED, "judge", step)
        rows = torch.randint(len(data), (BATCH,), generator=key)
        pixels = augment(data.pixels(rows), 15.0, key)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(made(pixels), kinds[data.plan["first"][rows]], label_smoothing=0.05)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        fall.step()
    return made


def judge_of_things(data: IconScenes, steps: int = 3000) -> nn.Module:
    """Tells which of the vocabulary is shown; `data` is what the contrastive pair learns from."""
    torch.manual_seed(SEED)
    single = replace(data, scenes=0.0, seed=SEED, variants=8)
    return taught(network(len(data.words.names)), single, single.icons.things, steps)


def judge_of_textures(recipe: Recipe, steps: int = 1500) -> nn.Module:
    """Tells in which of the recipe's styles a picture is drawn, by its small patches alone."""
    torch.manual_seed(SEED)
    data = every_icon(recipe)
    return taught(texture(len(data.styles)), data, data.icons.styles, steps)


def line_up(pixels: Tensor, things: Tensor, grounds: Tensor, icons: Icons) -> Tensor:
    """The style of that icon of each picture's thing which is nearest to the picture (n, 3, h, w) in -1..1: (n,).

    By squared error at half the size, of icons at several sizes and places on the ground (rows of GROUND_NAMES).
    """
    nearest = []
    for picture, thing, ground in zip(F.avg_pool2d(pixels, 2), things.tolist(), grounds.tolist(), strict=True):
        rows = (icons.things == thing).nonzero()[:, 0]
        shown = torch.stack([shown_at(icons.pictures[rows], share, BACKGROUND_NAMES[ground]) for share in SIZES], dim=1)
        apart = [
            (shown.roll((down, right), dims=(-2, -1)) - picture).square().mean(dim=(2, 3, 4)).amin(dim=1)
            for down in SHIFTS
            for right in SHIFTS
        ]
        nearest.append(icons.styles[rows[torch.stack(apart).amin(dim=0).argmin()]])
    return torch.stack(nearest)


def shown_at(icons: Tensor, share: float, ground: str) -> Tensor:
    """Icons (n, 4, h, w) uint8 in the middle of a ground, `share` of its side large: (n, 3, h/2, w/2) in -1..1."""
    side = icons.shape[-1]
    inner = round(share * side / 2) * 2
    small = F.interpolate(premultiply(icons), inner, mode="bilinear", antialias=True)
    layer = F.pad(small, 4 * [(side - inner) // 2])
    canvas = torch.tensor(BACKGROUNDS[ground]).view(3, 1, 1) / 255 * (1 - layer[:, 3:]) + layer[:, :3]
    return F.avg_pool2d(2 * canvas - 1, 2)


def every_icon(recipe: Recipe, held: bool = False) -> IconScenes:
    """The icons of all things that the styles have in common, tones of skin left out: held out, or all others."""
    made = recipe.data.icons
    assert made is not None
    sets = dict(zip(made.styles, map(npm_package, recipe.data.packages), strict=False))
    known = [set(read_icon_set(folder)["icons"]) for folder in sets.values()]  # type: ignore[call-overload]
    names = sorted(name for name in set.intersection(*known) if "-skin-tone" not in name and "-hair" not in name)
    words = vocabulary(names)
    return IconScenes(
        render_icons(names, sets, made.size, held_out=held), words, made.styles, 2, 0.0, SEED, mirrored=True
    )


def ground_of(pixels: Tensor) -> Tensor:
    """The named ground nearest to the middle value of each picture's rim, (n,): rows of GROUND_NAMES."""
    rim = torch.cat([pixels[:, :, :3].flatten(2), pixels[:, :, -3:].flatten(2)], dim=2)
    colour = (rim.median(dim=2).values + 1) * 127.5
    named = torch.tensor([BACKGROUNDS[name] for name in BACKGROUND_NAMES]).float()
    return torch.cdist(colour, named).argmin(1)
