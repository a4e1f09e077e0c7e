"""Sets of icons: what things are called, what is kept from all training, and how they are rendered."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gradina.errors import MissingExtra, RecipeError

log = logging.getLogger(__name__)


def held_out(style: str, name: str) -> bool:
    """Whether an icon is kept from all training, to see what is drawn where it has never been seen."""
    return int(hashlib.sha256(f"{style}/{name}".encode()).hexdigest(), 16) % 32 == 0


def with_article(name: str) -> str:
    """A thing in words: "teddy-bear" is "a teddy bear"."""
    words = name.replace("-", " ")
    return f"{'an' if words[0] in 'aeiou' and not words.startswith(('unicorn', 'ukulele')) else 'a'} {words}"


@dataclass(frozen=True)
class Vocabulary:
    """The things of a data set, and what each is called: first by its icon's name, then by synonyms."""

    names: tuple[str, ...]
    calls: tuple[tuple[str, ...], ...]


def vocabulary(things: Sequence[str]) -> Vocabulary:
    """Things as recipes list them: an icon's name, and behind commas other words for it."""
    rows = [[word.strip() for word in thing.split(",")] for thing in things]
    return Vocabulary(tuple(row[0] for row in rows), tuple(tuple(map(with_article, row)) for row in rows))


def render(svg: str, size: int) -> Tensor:
    """An SVG as (4, size, size) uint8: red, green, blue, alpha; drawn at twice the size, as masks have hard edges."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtra("icons are drawn by resvg-py; install it with: pip install 'gradina[train]'") from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size, skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        square = ImageOps.pad(image.convert("RGBA"), (2 * size, 2 * size), color=(0, 0, 0, 0)).reduce(2)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def svg_of(icons: dict[str, object], name: str) -> str:
    """One icon of an Iconify set as a whole SVG file; KeyError if the set has none of that name."""
    sets: dict[str, dict[str, object]] = icons["icons"]  # type: ignore[assignment]
    icon = sets[name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'


def icon_set(folder: Path) -> dict[str, object]:
    """The icons.json of an unpacked Iconify package."""
    path = folder / "icons.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); expected the icons of an Iconify package") from error
    if not isinstance(read, dict) or not isinstance(read.get("icons"), dict):
        raise RecipeError(f"{path}: lists no icons; expected the icons of an Iconify package")
    return read


@dataclass(frozen=True)
class Icons:
    """Rendered icons: which thing in which style each is, and its picture with alpha."""

    things: Tensor  # (n,)
    styles: Tensor  # (n,)
    pictures: Tensor  # (n, 4, size, size) uint8

    def __len__(self) -> int:
        return len(self.things)


def rendered(names: Sequence[str], sets: dict[str, Path], size: int, held: bool) -> Icons:
    """All icons of the things in the sets that are held out, or all that are not."""
    rows = []
    log.info("draws %d things in %s", len(names), ", ".join(sets))
    for s, (style, folder) in enumerate(sets.items()):
        icons = icon_set(folder)
        for t, name in enumerate(names):
            if held_out(style, name) == held and name in icons["icons"]:  # type: ignore[operator]
                rows.append((t, s, render(svg_of(icons, name), size)))
    if not rows:
        raise RecipeError(f"no icon of {len(names)} things in {', '.join(sets)}; check the names")
    things, styles, pictures = zip(*rows, strict=True)
    return Icons(torch.tensor(things), torch.tensor(styles), torch.stack(pictures))
