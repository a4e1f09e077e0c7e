"""Grids: positions of pictures, labels that fit, and the frames of films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradina.errors import DiskError, RequestError
from gradina.images.grid import (
    BACKGROUND,
    MAX_LINES,
    MAX_ROW_LABEL,
    MIN_CELL,
    MIN_FRAME,
    TITLE_SIZE,
    _label,
    film,
    grid,
    strip,
)

COLOURS = [(200, 0, 0), (0, 160, 0), (0, 0, 220), (90, 90, 0), (0, 120, 120)]


def squares(size: tuple[int, int] = (32, 32), count: int = 5) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS[:count]]


def boxes(page: Image.Image) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of each of the coloured pictures on a sheet."""
    pixels = np.asarray(page)
    found = [np.nonzero((pixels == colour).all(2)) for colour in COLOURS]
    return [(int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1) for y, x in found if len(x)]


def test_small_pictures_are_enlarged_by_an_integer_factor() -> None:
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pad = 10
    got = grid([source], pad=pad).crop((2 * pad, 2 * pad, 2 * pad + MIN_CELL, 2 * pad + MIN_CELL))
    assert np.array_equal(np.asarray(got)[2::4, 2::4], np.asarray(source))


def test_large_pictures_are_unchanged() -> None:
    source = Image.effect_noise((200, 150), 60).convert("RGB")
    assert grid([source], pad=5).crop((10, 10, 210, 160)).tobytes() == source.tobytes()


def test_rows_columns_and_even_margins() -> None:
    page = grid(squares(), columns=3, pad=8)
    assert boxes(page) == [
        (
            16 + c * (MIN_CELL + 8),
            16 + r * (MIN_CELL + 8),
            16 + c * (MIN_CELL + 8) + MIN_CELL,
            16 + r * (MIN_CELL + 8) + MIN_CELL,
        )
        for r, c in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    assert page.size == (2 * 16 + 3 * MIN_CELL + 2 * 8, 2 * 16 + 2 * MIN_CELL + 8)
    assert page.getpixel((0, 0)) == BACKGROUND
    assert grid(squares(count=4)).size == grid(squares(count=4), columns=2).size


def test_pictures_of_several_sizes_and_modes_share_a_cell() -> None:
    mixed = [
        Image.new("RGB", (64, 32), COLOURS[0]),
        Image.new("RGBA", (32, 64), (*COLOURS[1], 255)),
        Image.new("1", (64, 64)),
    ]
    assert boxes(grid(mixed, columns=3, pad=10)) == [(20, 52, 148, 116), (190, 20, 254, 148)]


def test_labels_of_rows_and_columns() -> None:
    page = grid(squares(count=4), row_labels=["one", "two"], column_labels=["left", "right"], title="a title", pad=10)
    first, second, third, _ = boxes(page)
    dark = np.asarray(page.convert("L")) < 170

    def inked(left: int, top: int, right: int, bottom: int) -> float:
        """Middle of the ink across a part of the sheet, in pixels from its left; fails where there is none."""
        return left + float(np.nonzero(dark[top:bottom, left:right])[1].mean())

    for box in (first, second):
        assert abs(inked(box[0], box[1] - 24, box[2], box[1] - 2) - (box[0] + box[2]) / 2) < 6
    for box in (first, third):
        assert inked(0, box[1], first[0] - 2, box[3]) < box[0]
    assert abs(inked(0, 0, page.width, TITLE_SIZE + 20) - page.width / 2) < 8
    assert not dark[:, :8].any()
    assert not dark[:8].any()


def test_labels_below_pictures() -> None:
    names = ["one", "two", "three and more words than fit into a single line", "", "five"]
    unlabelled, page = grid(squares(), columns=3, pad=10), grid(squares(), columns=3, labels=names, pad=10)
    assert page.width == unlabelled.width
    assert page.height > unlabelled.height + 2 * 30
    dark = np.asarray(page.convert("L")) < 170
    for i, (left, _, right, bottom) in enumerate(boxes(page)):
        ink = np.nonzero(dark[bottom + 2 : bottom + 60, left:right])[1]
        assert bool(len(ink)) == bool(names[i])
        assert not names[i] or abs(ink.mean() - (right - left) / 2) < 8
    assert not dark[-8:].any()
    with pytest.raises(RequestError, match="labels: got 2, expected 5 for 5 pictures"):
        grid(squares(), labels=["one", "two"])


TEXTS = ["", "i", "short", "many words that go on and on and on " * 20, "x" * 2000, "one\ntwo\tthree"]
SCRIPTS = ["σ 14.6", "東京の夜", "😀", "العربية", "\ud800", "\x00\x07"]


@pytest.mark.parametrize("text", [*TEXTS, *SCRIPTS])
def test_any_label_fits(text: str) -> None:
    for width in (20, 128, MAX_ROW_LABEL):
        label = _label(text, width, ascii_only=text.isascii())
        assert len(label.lines) <= MAX_LINES
        assert label.width <= width + 2
    page = grid(squares(count=2), column_labels=[text, "b"], row_labels=[text], title=text)
    assert page.width >= 2 * MIN_CELL
    assert _label("x" * 2000, 128, ascii_only=True).lines[-1].endswith("…")


def test_strip_is_one_row() -> None:
    page = strip(squares(), labels=["a", "b", "c", "d", "e"], title="five")
    assert len({top for _, top, _, _ in boxes(page)}) == 1
    assert len(boxes(page)) == 5


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".apng", ".GIF"])
def test_last_frame_of_a_film_is_held(tmp_path: Path, suffix: str) -> None:
    film(iter(squares()), tmp_path / f"a{suffix}", seconds=1.0, hold=2.0)
    durations = []
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.size == (MIN_FRAME, MIN_FRAME)
        assert image.info.get("loop") == 0
        for i in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
            assert image.convert("RGB").getpixel((100, 100)) == COLOURS[i]
    assert durations == [200, 200, 200, 200, 2200]
    assert len(list(tmp_path.iterdir())) == 1


def test_invalid_grids_and_films_are_refused(tmp_path: Path) -> None:
    for attempt, words in (
        (lambda: grid([]), "got none, expected at least one picture"),
        (lambda: strip([]), "got none"),
        (lambda: grid(squares(), columns=0), "columns: got 0"),
        (lambda: grid(squares(), columns=2, row_labels=["a"]), "row_labels: got 1, expected 3 for 5 pictures"),
        (lambda: grid(squares(), columns=2, column_labels=["a"]), "column_labels: got 1, expected 2"),
        (lambda: film([], tmp_path / "a.gif"), "got frames of none"),
        (lambda: film([*squares(), *squares((8, 8))], tmp_path / "a.gif"), "32 x 32, 8 x 8"),
        (lambda: film(squares(), tmp_path / "a.mp4"), r"there is no '.mp4'.*\.gif, \.webp"),
    ):
        with pytest.raises(RequestError, match=words):
            attempt()
    with pytest.raises(DiskError, match="make the folder first"):
        film(squares(), tmp_path / "none" / "a.gif")
    assert not list(tmp_path.iterdir())
