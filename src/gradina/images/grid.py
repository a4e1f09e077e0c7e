"""Sheets of pictures: a labelled grid, a strip of frames, a film; for the command line, for training, for papers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from gradina.errors import RequestError
from gradina.files import atomic_write
from gradina.request import choice

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, PALE = (250, 250, 248), (38, 38, 40), (96, 96, 100)
LABEL, TITLE = 15, 20  # pixels, size of the letters
LEADING = 1.3  # from line to line, in letter sizes
LINES = 3  # a label is wrapped into so many lines, then shortened
ROW_LABEL = 200  # pixels, at most
CELL, FRAME = 128, 256  # pixels: smaller pictures are enlarged to at least this, on a sheet and in a film
FILMS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}

# Pillow's own font knows hardly more than ASCII; these, where the system has one, draw the rest.
WIDER_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@functools.cache
def _font(size: int, plain: bool) -> Font:
    for name in () if plain else WIDER_FONTS:
        try:
            return ImageFont.truetype(name, round(size * 0.9))
        except OSError:
            continue
    return ImageFont.load_default(size)


class _Label(NamedTuple):
    """A text broken into lines, with the room that it takes in pixels."""

    lines: tuple[str, ...]
    font: Font
    leading: int
    width: int

    @property
    def height(self) -> int:
        return self.leading * len(self.lines)


def _label(text: object, width: int, plain: bool, size: int = LABEL) -> _Label:
    """The text in at most LINES lines of at most `width` pixels, broken between words where that can be."""
    rest = " ".join(str(text).encode("utf-8", "replace").decode().split())[:500]
    font = _font(size, plain)
    lines: list[str] = []
    while rest and len(lines) < LINES:
        end = next((n for n in range(1, len(rest) + 1) if font.getlength(rest[:n]) > width), len(rest) + 1) - 1
        if end < len(rest):
            space = rest.rfind(" ", 0, end + 1)
            end = space if space > 0 else max(end, 1)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "…"
    return _Label(tuple(lines), font, round(size * LEADING), math.ceil(max(map(font.getlength, lines), default=0)))


def _write(sheet: ImageDraw.ImageDraw, label: _Label, x: float, y: float, side: str, ink: tuple[int, int, int]) -> None:
    """Draws downwards from y, the middle (m) or right end (r) of each line at x."""
    for i, line in enumerate(label.lines):
        sheet.text((x, y + (i + 0.5) * label.leading), line, fill=ink, font=label.font, anchor=f"{side}m")


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _factor(images: Sequence[Image.Image], least: int) -> int:
    """The whole number by which the largest picture must grow until its longer side has `least` pixels."""
    return max(1, math.ceil(least / max(max(image.size) for image in images)))


def _shape(
    count: int, columns: int | None, row_labels: Sequence[str], column_labels: Sequence[str], labels: Sequence[str]
) -> tuple[int, int]:
    """Rows and columns for `count` pictures; the labels decide where `columns` is open."""
    if not count:
        raise RequestError("images: got none, expected at least one picture for a sheet")
    if columns is None:
        by_rows = math.ceil(count / len(row_labels)) if row_labels else math.ceil(math.sqrt(count))
        columns = len(column_labels) or by_rows
    if columns < 1:
        raise RequestError(f"columns: got {columns}, expected at least 1")
    rows = math.ceil(count / columns)
    for name, texts, expected in (
        ("row_labels", row_labels, rows), ("column_labels", column_labels, columns), ("labels", labels, count),
    ):  # fmt: skip
        if texts and len(texts) != expected:
            raise RequestError(f"{name}: got {len(texts)}, expected {expected} for {count} pictures")
    return rows, columns


def grid(
    images: Iterable[Image.Image],
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str | None = None,
    pad: int = 10,
) -> Image.Image:
    """Pictures, row by row, as one picture with labels beside its rows, over its columns and under each picture.

    Small pictures are enlarged by a whole factor without smoothing; `pad` is the room between pictures, in pixels.
    Raises RequestError where the numbers of pictures and labels do not match.
    """
    images = list(images)
    rows, columns = _shape(len(images), columns, row_labels, column_labels, labels)
    factor = _factor(images, CELL)
    cell = [factor * max(side) for side in zip(*(image.size for image in images), strict=True)]

    plain = "".join(map(str, (*row_labels, *column_labels, *labels, title or ""))).isascii()  # one font for all
    under = [_label(text, cell[0], plain) for text in labels]
    foot = max((label.height + pad // 2 for label in under), default=0)
    pitch = cell[0] + pad, cell[1] + foot + pad
    across, down = (n * step - pad for n, step in zip((columns, rows), pitch, strict=True))
    beside = [_label(text, ROW_LABEL, plain) for text in row_labels]
    over = [_label(text, cell[0], plain) for text in column_labels]
    margin = 2 * pad
    left = margin + (max(label.width for label in beside) + pad + pad // 2 if beside else 0)
    head = _label(title, left + across - margin, plain, TITLE) if title else None
    head_height = head.height + pad if head else 0
    top = margin + head_height + (max(label.height for label in over) + pad // 2 if over else 0)

    page = Image.new("RGB", (left + across + margin, top + down + margin), PAPER)
    pen = ImageDraw.Draw(page)
    if head:
        _write(pen, head, (left + across + margin) / 2, margin - pad / 2, "m", INK)
    for column, label in enumerate(over):
        x = left + column * pitch[0] + cell[0] / 2
        _write(pen, label, x, top - pad // 2 - label.height, "m", PALE)
    for row, label in enumerate(beside):
        y = top + row * pitch[1] + (cell[1] - label.height) / 2
        _write(pen, label, left - pad - pad // 2, y, "r", PALE)
    for i, image in enumerate(images):
        large = _enlarged(image, factor)
        x, y = left + i % columns * pitch[0], top + i // columns * pitch[1]
        page.paste(large, (x + (cell[0] - large.width) // 2, y + (cell[1] - large.height) // 2))
        if under:
            _write(pen, under[i], x + cell[0] / 2, y + cell[1] + pad // 2, "m", PALE)
    return page


def strip(images: Iterable[Image.Image], labels: Sequence[str] = (), title: str | None = None) -> Image.Image:
    """Frames from left to right as one picture, each under its label."""
    images = list(images)
    return grid(images, columns=len(images) or None, column_labels=labels, title=title, pad=6)


def film(images: Iterable[Image.Image], path: str | PathLike[str], seconds: float = 3.0, hold: float = 1.5) -> None:
    """Writes frames of one size as an endless film: GIF, WebP or animated PNG, as the suffix of `path` says.

    The frames share `seconds`; the last one stays for `hold` seconds more. Frames under 256 pixels are enlarged by
    a whole factor. Raises RequestError, and DiskError where the file cannot be written.
    """
    images = list(images)
    kind = FILMS[choice("film", Path(path).suffix.lower(), tuple(FILMS))]
    if not images or any(image.size != images[0].size for image in images):
        sizes = ", ".join(sorted({f"{image.width} x {image.height}" for image in images})) or "none"
        raise RequestError(f"film: got frames of {sizes}, expected at least one frame, all of one size")
    factor = _factor(images, FRAME)
    frames = [_enlarged(image, factor) for image in images]
    each = max(20, round(1000 * seconds / len(frames)))  # ms; browsers slow down anything faster
    durations = [each] * (len(frames) - 1) + [each + round(1000 * hold)]
    quality = {"lossless": True} if kind == "WEBP" else {}
    with atomic_write(path) as file:
        frames[0].save(
            file, format=kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **quality
        )
