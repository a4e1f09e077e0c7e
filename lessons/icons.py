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


def icons(names: Sequence[str], style: str = "noto", held: bool = False) -> tuple[Tensor, list[str]]:
    """Those of the icons that are held out from all training, or those that are not, and what they are called.

    Pictures (n, 3, 128, 128) in -1..1, in the order of the names.
    """
    found = render_icons(names, {style: folder_of(style)}, SIDE, held)
    colour, alpha = found.pictures[:, :3].float() / 127.5 - 1, found.pictures[:, 3:].float() / 255
    return torch.lerp(torch.ones(()), colour, alpha), [with_article(names[int(i)]) for i in found.things]


def unseen(count: int, style: str = "noto") -> tuple[Tensor, list[str]]:
    """The first `count` of all icons of a style that are held out, as such pictures, and what they are called."""
    every: dict[str, object] = read_icon_set(folder_of(style))["icons"]  # type: ignore[assignment]
    names = [name for name in every if is_held_out(style, name) and not re.search("skin|hair|tone|square|keycap", name)]
    if not 1 <= count <= len(names):
        raise ValueError(f"count: got {count}, expected 1 to {len(names)}")
    return icons(names[:count], style, held=True)


def folder_of(style: str) -> Path:
    """The unpacked set of a style; ValueError where there is none."""
    if style not in PACKAGES:
        raise ValueError(f"style: got {style!r}, expected {' or '.join(PACKAGES)}")
    return npm_package(PACKAGES[style])
