"""Icons for the lessons."""

from __future__ import annotations

import pytest
from icons import held_out_icons, icons

from gradina.training.data.icons import is_held_out


def test_icons_are_composited_over_white() -> None:
    names = ["red-apple", "rocket", "badminton"]
    assert [is_held_out("noto", name) for name in names] == [False, False, True]
    (pictures, captions), (held_out, held_out_captions) = icons(names), icons(names, held_out=True)
    assert (captions, held_out_captions) == (["a red apple", "a rocket"], ["a badminton"])
    assert pictures.shape == (2, 3, 128, 128)
    assert (pictures >= -1).all()
    assert (pictures <= 1).all()
    assert (pictures[:, :, 0, 0] == 1).all()
    red, green, blue = pictures[0, :, 80, 64]
    assert red > 0.3 > max(green, blue)
    assert held_out.shape == (1, 3, 128, 128)


def test_held_out_icons() -> None:
    pictures, captions = held_out_icons(3, "twemoji")
    assert pictures.shape == (3, 3, 128, 128)
    assert all(is_held_out("twemoji", caption.split(" ", 1)[1].replace(" ", "-")) for caption in captions)
    for count in (0, 10_000):
        with pytest.raises(ValueError, match=f"count: got {count}, expected 1 to "):
            held_out_icons(count)
    with pytest.raises(ValueError, match="style: got 'clay', expected noto or twemoji"):
        held_out_icons(3, "clay")
