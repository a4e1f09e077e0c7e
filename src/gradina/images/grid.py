"""Several pictures in one file: a labelled grid, a strip of frames, an animation."""

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
from gradina.request_checks import check_choice

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND, TITLE_COLOUR, LABEL_COLOUR = (250, 250, 248), (38, 38, 40), (96, 96, 100)
LABEL_SIZE, TITLE_SIZE = 15, 20  # font sizes in pixels
LINE_HEIGHT = 1.3  # in font sizes
MAX_LINES = 3  # of a label, which is then shortened
MAX_ROW_LABEL = 200  # pixels
MIN_CELL, MIN_FRAME = 128, 256  # pixels, to which smaller pictures are enlarged in a grid and in a film
FILMS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}

# Pillow's default font has little more than ASCII; these, if installed, have the rest.
UNICODE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@functools.cache
def _font(size: int, ascii_only: bool) -> Font:
    for name in () if ascii_only else UNICODE_FONTS:
        try:
            return ImageFont.truetype(name, round(size * 0.9))
        except OSError:
            continue
    return ImageFont.load_default(size)


class _Label(NamedTuple):
    """A text wrapped into lines, with its size in pixels."""

    lines: tuple[str, ...]
    font: Font
    line_height: int
    width: int

    @property
    def height(self) -> int:
        return self.line_height * len(self.lines)

    def write(self, draw: ImageDraw.ImageDraw, x: float, y: float, align: str, colour: tuple[int, int, int]) -> None:
        """Draws the lines down from y, with the middle (m) or the right end (r) of each at x."""
        for i, line in enumerate(self.lines):
            draw.text((x, y + (i + 0.5) * self.line_height), line, fill=colour, font=self.font, anchor=f"{align}m")


def _label(text: object, width: int, ascii_only: bool, size: int = LABEL_SIZE) -> _Label:
    """The text in at most MAX_LINES lines of at most `width` pixels, wrapped between words where possible."""
    rest = " ".join(str(text).encode("utf-8", "replace").decode().split())[:500]
    font = _font(size, ascii_only)
    lines: list[str] = []
    while rest and len(lines) < MAX_LINES:
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
    return _Label(tuple(lines), font, round(size * LINE_HEIGHT), math.ceil(max(map(font.getlength, lines), default=0)))


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _factor(images: Sequence[Image.Image], least: int) -> int:
    """The integer factor that enlarges the largest picture to at least `least` pixels on its longer side."""
    return max(1, math.ceil(least / max(max(image.size) for image in images)))


def _shape(
    count: int, columns: int | None, row_labels: Sequence[str], column_labels: Sequence[str], labels: Sequence[str]
) -> tuple[int, int]:
    """Rows and columns for `count` pictures; without `columns`, the labels decide."""
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
    """Pictures, row by row, in a grid with labels left of rows, above columns and below pictures.

    Small pictures are enlarged by an integer factor, nearest-neighbour; `pad` is the gap between pictures in pixels.
    Raises RequestError where the numbers of pictures and labels do not match.
    """
    images = list(images)
    rows, columns = _shape(len(images), columns, row_labels, column_labels, labels)
    factor = _factor(images, MIN_CELL)
    width, height = (factor * max(side) for side in zip(*(image.size for image in images), strict=True))

    ascii_only = "".join(map(str, (*row_labels, *column_labels, *labels, title or ""))).isascii()  # one font for all
    below = [_label(text, width, ascii_only) for text in labels]
    left = [_label(text, MAX_ROW_LABEL, ascii_only) for text in row_labels]
    above = [_label(text, width, ascii_only) for text in column_labels]
    margin, gap = 2 * pad, pad // 2
    step_x, step_y = width + pad, height + max((label.height + gap for label in below), default=0) + pad
    x0 = margin + (max(label.width for label in left) + pad + gap if left else 0)
    right = x0 + columns * step_x - pad
    head = _label(title, right - margin, ascii_only, TITLE_SIZE) if title else None
    y0 = margin + (head.height + pad if head else 0) + (max(label.height for label in above) + gap if above else 0)

    page = Image.new("RGB", (right + margin, y0 + rows * step_y - pad + margin), BACKGROUND)
    draw = ImageDraw.Draw(page)
    if head:
        head.write(draw, (right + margin) / 2, margin - pad / 2, "m", TITLE_COLOUR)
    for column, label in enumerate(above):
        label.write(draw, x0 + column * step_x + width / 2, y0 - gap - label.height, "m", LABEL_COLOUR)
    for row, label in enumerate(left):
        label.write(draw, x0 - pad - gap, y0 + row * step_y + (height - label.height) / 2, "r", LABEL_COLOUR)
    for i, image in enumerate(images):
        enlarged = _enlarged(image, factor)
        x, y = x0 + i % columns * step_x, y0 + i // columns * step_y
        page.paste(enlarged, (x + (width - enlarged.width) // 2, y + (height - enlarged.height) // 2))
        if below:
            below[i].write(draw, x + width / 2, y + height + gap, "m", LABEL_COLOUR)
    return page


def strip(images: Iterable[Image.Image], labels: Sequence[str] = (), title: str | None = None) -> Image.Image:
    """Frames from left to right in one picture, each below its label."""
    images = list(images)
    return grid(images, columns=len(images) or None, column_labels=labels, title=title, pad=6)


def film(images: Iterable[Image.Image], path: str | PathLike[str], seconds: float = 3.0, hold: float = 1.5) -> None:
    """Writes frames of one size as a looping animation: GIF, WebP or PNG, by the suffix of `path`.

    The frames share `seconds`, and the last stays for `hold` seconds more. Frames under 256 pixels are enlarged by an
    integer factor. Raises RequestError, and DiskError where the file cannot be written.
    """
    images = list(images)
    kind = FILMS[check_choice("film", Path(path).suffix.lower(), tuple(FILMS))]
    if not images or any(image.size != images[0].size for image in images):
        sizes = ", ".join(sorted({f"{image.width} x {image.height}" for image in images})) or "none"
        raise RequestError(f"film: got frames of {sizes}, expected at least one frame, all of one size")
    factor = _factor(images, MIN_FRAME)
    frames = [_enlarged(image, factor) for image in images]
    duration = max(20, round(1000 * seconds / len(frames)))  # ms; browsers slow down anything faster
    durations = [duration] * (len(frames) - 1) + [duration + round(1000 * hold)]
    quality = {"lossless": True} if kind == "WEBP" else {}
    with atomic_write(path) as file:
        frames[0].save(
            file, format=kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **quality
        )
