"""Classifiers of emoji-like pictures, trained here on rendered icons, independent of the model that they evaluate.

One recognises things, from the icon sets of the recipe's data. Styles are found by a nearest-icon test: of the icons of
a thing, one in each style, which is nearest to the picture? Another network gives a second opinion: it learns styles
from whole icons of the four sets, of many more things than the model knows, so it cannot infer a style from the thing.
The background is read from a picture's rim. None has seen an icon that is held out, in that style.
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
from gradina.runtime.device import multiplies_bf16
from gradina.training.checkpoint import cached_tensors
from gradina.training.data.dataset import augment, generator
from gradina.training.data.icons import Icons, read_icon_set, render_icons, vocabulary
from gradina.training.data.sources import npm_package
from gradina.training.data.synthetic import BACKGROUND_NAMES, BACKGROUNDS, IconScenes, premultiply
from gradina.training.pretrain.recipes import Recipe

SEED = 7
BATCH = 64
SCALES = (0.82, 0.86, 0.9, 0.94, 0.98)  # of icons in the nearest-icon test, relative to the side
SHIFTS = range(-4, 5)  # and their offsets along each axis, in pixels at half the resolution


def block(width: int, out: int) -> nn.Module:
    """(b, width, h, w) -> (b, out, h/2, w/2)"""
    return nn.Sequential(
        nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip


def network(classes: int, widths: tuple[int, ...] = (16, 32, 64, 128, 192)) -> nn.Module:
    """A small convolutional classifier: (b, 3, 128, 128) -> (b, classes)."""
    stem = (nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks = [block(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(widths[-1], classes)
    )


@torch.no_grad()
def predicted(classifier: nn.Module, pixels: Tensor) -> Tensor:
    """The class that a classifier predicts for each picture (n, 3, 128, 128) in -1..1: (n,)."""
    return torch.cat([classifier(part).argmax(1) for part in torch.split(pixels, BATCH)])


def trained_or_cached(classifier: nn.Module, data: IconScenes, classes: Tensor, steps: int) -> nn.Module:
    """`trained`, kept in the cache under a hash of everything that it depends on."""
    key = hashlib.sha256(repr((classifier, steps, BATCH, SEED, torch.__version__, inspect.getsource(trained))).encode())
    for part in (data.icons.pictures, classes, *data.plan.values()):
        key.update(part.numpy().tobytes())
    path = cache_folder() / "judges" / f"{key.hexdigest()[:16]}.safetensors"
    weights = cached_tensors(path, key.hexdigest(), lambda: trained(classifier, data, classes, steps).state_dict())
    classifier.load_state_dict(weights)
    return classifier.eval()


def trained(classifier: nn.Module, data: IconScenes, classes: Tensor, steps: int) -> nn.Module:
    """A classifier after so many steps on randomly rotated and tinted pictures; `classes` (icons,) has each icon's."""
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    classifier.train()
    for step in range(steps):
        key = generator(SEED, "judge", step)
        rows = torch.randint(len(data), (BATCH,), generator=key)
        pixels = augment(data.pixels(rows), 15.0, key)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16()):
            loss = F.cross_entropy(classifier(pixels), classes[data.plan["first"][rows]], label_smoothing=0.05)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return classifier


def thing_classifier(data: IconScenes, steps: int = 3000) -> nn.Module:
    """Recognises things of the vocabulary; `data` is what the contrastive pair is trained on."""
    torch.manual_seed(SEED)
    single = replace(data, scenes=0.0, seed=SEED, variants=8)
    return trained_or_cached(network(len(data.words.names)), single, single.icons.things, steps)


def style_classifier(recipe: Recipe, steps: int = 3000) -> nn.Module:
    """Recognises the recipe's styles from whole pictures, of every thing that all styles have."""
    torch.manual_seed(SEED)
    data = common_icons(recipe)
    return trained_or_cached(network(len(data.styles)), data, data.icons.styles, steps)


def nearest_icon_style(pixels: Tensor, things: Tensor, grounds: Tensor, icons: Icons) -> Tensor:
    """The style of that icon of each picture's thing which is nearest to the picture (n, 3, h, w) in -1..1: (n,).

    By mean squared error at half the resolution, over SCALES and SHIFTS, on the backgrounds (rows of BACKGROUND_NAMES).
    """
    nearest = []
    for picture, thing, ground in zip(F.avg_pool2d(pixels, 2), things.tolist(), grounds.tolist(), strict=True):
        rows = (icons.things == thing).nonzero()[:, 0]
        shown = torch.stack(
            [composited(icons.pictures[rows], scale, BACKGROUND_NAMES[ground]) for scale in SCALES], dim=1
        )
        errors = [
            (shown.roll((down, right), dims=(-2, -1)) - picture).square().mean(dim=(2, 3, 4)).amin(dim=1)
            for down in SHIFTS
            for right in SHIFTS
        ]
        nearest.append(icons.styles[rows[torch.stack(errors).amin(dim=0).argmin()]])
    return torch.stack(nearest)


def centred(icons: Tensor, side: int, canvas: int) -> Tensor:
    """Icons (n, 4, h, w) uint8, resized to a side, on transparent canvases (n, 4, canvas, canvas); premultiplied."""
    scaled = F.interpolate(premultiply(icons), side, mode="bilinear", antialias=True)
    before = (canvas - side) // 2
    after = canvas - side - before
    return F.pad(scaled, (before, after, before, after))


def over_background(layers: Tensor, ground: str) -> Tensor:
    """Premultiplied layers (n, 4, h, w) on a named background, as pixels (n, 3, h, w) in -1..1."""
    colour = torch.tensor(BACKGROUNDS[ground]).view(3, 1, 1) / 255
    return 2 * (colour * (1 - layers[:, 3:]) + layers[:, :3]) - 1


def composited(icons: Tensor, scale: float, ground: str) -> Tensor:
    """Icons (n, 4, h, w) uint8, scaled, in the middle of a background: (n, 3, h/2, w/2) in -1..1."""
    side = icons.shape[-1]
    inner = round(scale * side / 2) * 2
    return F.avg_pool2d(over_background(centred(icons, inner, side), ground), 2)


def common_icons(recipe: Recipe, held: bool = False) -> IconScenes:
    """The icons of all things that every style has, without variants of skin and hair: held out, or all others."""
    settings = recipe.data.icons
    assert settings is not None
    sets = dict(zip(settings.styles, map(npm_package, recipe.data.packages), strict=False))
    names_by_set = [set(read_icon_set(folder)["icons"]) for folder in sets.values()]
    names = sorted(n for n in set.intersection(*names_by_set) if "-skin-tone" not in n and "-hair" not in n)
    icons = render_icons(names, sets, settings.size, held_out=held)
    return IconScenes(icons, vocabulary(names), settings.styles, 2, 0.0, SEED, mirrored=True)


def background_of(pixels: Tensor) -> Tensor:
    """The named background colour nearest to the median of each picture's rim, (n,): rows of BACKGROUND_NAMES."""
    rim = torch.cat([pixels[:, :, :3].flatten(2), pixels[:, :, -3:].flatten(2)], dim=2)
    colour = (rim.median(dim=2).values + 1) * 127.5
    named = torch.tensor([BACKGROUNDS[name] for name in BACKGROUND_NAMES]).float()
    return torch.cdist(colour, named).argmin(1)
