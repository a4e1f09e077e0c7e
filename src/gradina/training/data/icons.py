"""Icon sets: names and synonyms of their things, the held-out split, and rendering from SVG."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gradina.errors import MissingExtra, RecipeError

log = logging.getLogger(__name__)


def is_held_out(style: str, name: str) -> bool:
    """Whether an icon is kept from all training, to test generalisation."""
    return int(hashlib.sha256(f"{style}/{name}".encode()).hexdigest(), 16) % 32 == 0


def with_article(name: str) -> str:
    """The name of an icon in words: "teddy-bear" is "a teddy bear"."""
    words = name.replace("-", " ")
    return f"{'an' if words[0] in 'aeiou' and not words.startswith(('unicorn', 'ukulele')) else 'a'} {words}"


@dataclass(frozen=True)
class Vocabulary:
    """The things of a dataset by the names of their icons, and the wordings for each: its name, then synonyms."""

    names: tuple[str, ...]
    wordings: tuple[tuple[str, ...], ...]


def vocabulary(things: Sequence[str]) -> Vocabulary:
    """Things as recipes list them: the name of an icon, then its synonyms, separated by commas."""
    rows = [[word.strip() for word in thing.split(",")] for thing in things]
    return Vocabulary(tuple(row[0] for row in rows), tuple(tuple(map(with_article, row)) for row in rows))


def render_svg(svg: str, size: int) -> Tensor:
    """An SVG as (4, size, size) uint8, RGBA; rendered at twice the size, since masks have hard edges."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtra("icons are drawn by resvg-py; install it with: pip install 'gradina[train]'") from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size, skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        square = ImageOps.pad(image.convert("RGBA"), (2 * size, 2 * size), color=(0, 0, 0, 0)).reduce(2)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def icon_svg(icons: dict[str, Any], name: str) -> str:
    """One icon of an Iconify set as a complete SVG file; KeyError if the set has none of that name."""
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'


def read_icon_set(folder: Path) -> dict[str, Any]:
    """The icons.json of an unpacked Iconify package; raises RecipeError."""
    path = folder / "icons.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); expected the icons of an Iconify package") from error
    if not isinstance(content, dict) or not isinstance(content.get("icons"), dict):
        raise RecipeError(f"{path}: lists no icons; expected the icons of an Iconify package")
    return content


@dataclass(frozen=True)
class Icons:
    """Rendered icons: the thing, the style and the RGBA picture of each."""

    things: Tensor  # (n,)
    styles: Tensor  # (n,)
    pictures: Tensor  # (n, 4, size, size) uint8

    def __len__(self) -> int:
        return len(self.things)


def render_icons(names: Sequence[str], sets: dict[str, Path], size: int, held_out: bool) -> Icons:
    """The icons of the named things in these sets, of the held-out split or of the other; raises RecipeError."""
    rows = []
    log.info("rendering %d things in %s", len(names), ", ".join(sets))
    for s, (style, folder) in enumerate(sets.items()):
        icons = read_icon_set(folder)
        for t, name in enumerate(names):
            if is_held_out(style, name) == held_out and name in icons["icons"]:
                rows.append((t, s, render_svg(icon_svg(icons, name), size)))
    if not rows:
        raise RecipeError(f"no icon of {len(names)} things in {', '.join(sets)}; check the names")
    things, styles, pictures = zip(*rows, strict=True)
    return Icons(torch.tensor(things), torch.tensor(styles), torch.stack(pictures))
