"""Icons for the lessons."""

from __future__ import annotations

import pytest
from icons import icons, unseen

from gradina.training.data.icons import is_held_out


def test_icons_are_pictures_over_white() -> None:
    names = ["red-apple", "rocket", "badminton"]
    assert [is_held_out("noto", name) for name in names] == [False, False, True]
    (pictures, calls), (held, held_calls) = icons(names), icons(names, held=True)
    assert (calls, held_calls) == (["a red apple", "a rocket"], ["a badminton"])
    assert pictures.shape == (2, 3, 128, 128)
    assert (pictures >= -1).all()
    assert (pictures <= 1).all()
    assert (pictures[:, :, 0, 0] == 1).all()
    red, green, blue = pictures[0, :, 80, 64]
    assert red > 0.3 > max(green, blue)
    assert held.shape == (1, 3, 128, 128)


def test_unseen_ones_are_held_out() -> None:
    pictures, calls = unseen(3, "twemoji")
    assert pictures.shape == (3, 3, 128, 128)
    assert all(is_held_out("twemoji", call.split(" ", 1)[1].replace(" ", "-")) for call in calls)
    for count in (0, 10_000):
        with pytest.raises(ValueError, match=f"count: got {count}, expected 1 to "):
            unseen(count)
    with pytest.raises(ValueError, match="style: got 'clay', expected noto or twemoji"):
        unseen(3, "clay")
