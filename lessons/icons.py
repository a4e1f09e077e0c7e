"""Icons for the lessons, as pictures over white."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gradina.training.data.icons import is_held_out, read_icon_set, render_icons, with_article
from gradina.training.data.sources import npm_package

SIDE = 128  # pixels
PACKAGES = {"noto": "@iconify-json/noto@1.2.9", "twemoji": "@iconify-json/twemoji@1.2.5"}


def icons(names: Sequence[str], style: str = "noto", held_out: bool = False) -> tuple[Tensor, list[str]]:
    """Those of the named icons that are held out from training, or the others, and their captions.

    Pictures (n, 3, 128, 128) in -1..1, in the order of the names.
    """
    found = render_icons(names, {style: icon_folder(style)}, SIDE, held_out)
    colour, alpha = found.pictures[:, :3].float() / 127.5 - 1, found.pictures[:, 3:].float() / 255
    return torch.lerp(torch.ones(()), colour, alpha), [with_article(names[int(i)]) for i in found.things]


def held_out_icons(count: int, style: str = "noto") -> tuple[Tensor, list[str]]:
    """The first `count` held-out icons of a style, and their captions."""
    all_icons = read_icon_set(icon_folder(style))["icons"]
    names = [
        name for name in all_icons if is_held_out(style, name) and not re.search("skin|hair|tone|square|keycap", name)
    ]
    if not 1 <= count <= len(names):
        raise ValueError(f"count: got {count}, expected 1 to {len(names)}")
    return icons(names[:count], style, held_out=True)


def icon_folder(style: str) -> Path:
    """The unpacked icon set of a style. Raises ValueError for an unknown style."""
    if style not in PACKAGES:
        raise ValueError(f"style: got {style!r}, expected {' or '.join(PACKAGES)}")
    return npm_package(PACKAGES[style])
