"""Icons: articles, rendering, and the held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from gradina.errors import MissingExtra
from gradina.training.data import icons
from gradina.training.data.icons import is_held_out, render_svg, with_article
from gradina.training.data.synthetic import IconScenes

from ..conftest import STYLES, THINGS


def test_held_out_icons_are_fixed() -> None:
    for style, name in (("noto", "teddy-bear"), ("twemoji", "owl"), ("fluent-emoji-flat", "key")):
        digest = int(hashlib.sha256(f"{style}/{name}".encode()).hexdigest(), 16)
        assert is_held_out(style, name) == (digest % 32 == 0)
    shares = [is_held_out("noto", str(i)) for i in range(3200)]
    assert 70 < sum(shares) < 130


@pytest.mark.parametrize(
    ("name", "words"),
    [("teddy-bear", "a teddy bear"), ("owl", "an owl"), ("red apple", "a red apple"), ("unicorn", "a unicorn")],
)
def test_with_article(name: str, words: str) -> None:
    assert with_article(name) == words


def test_icon_is_rendered_with_alpha() -> None:
    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 2" width="4" height="2">'
    svg = f'{box}<rect width="4" height="2"/></svg>'
    picture = render_svg(svg, 32)
    assert picture.shape == (4, 32, 32)
    assert (picture[3, 9:23] == 255).all(), "a wide icon keeps its shape"
    assert (picture[3, :7] == 0).all()


def test_trained_and_held_out_icons_are_disjoint(
    icon_scenes: Callable[..., IconScenes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icons, "is_held_out", lambda style, name: (style, name) == ("round", "owl"))
    trained, held = icon_scenes("train").icons, icon_scenes("held out").icons
    assert len(trained) == len(STYLES) * len(THINGS) - 1
    assert (held.things.tolist(), held.styles.tolist()) == ([1], [1])
    assert (1, 1) not in zip(trained.things.tolist(), trained.styles.tolist(), strict=True)


def test_missing_resvg_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"pip install 'gradina\[train\]'"):
        render_svg("<svg/>", 8)
