"""Who judges what a model draws: a line-up finds the style of known pictures, wherever and however large they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from judges import ground_of, line_up
from torch.nn import functional as F

from gradina.training.data.icons import Icons, vocabulary
from gradina.training.data.synthetic import BACKGROUND_NAMES, IconScenes


@pytest.fixture(scope="module")
def data() -> IconScenes:
    """Four things in three styles: a shape for each thing, in other colours and with other details in each style."""
    key = torch.Generator().manual_seed(0)
    things = torch.arange(4).repeat_interleave(3)
    styles = torch.arange(3).repeat(4)
    shapes = F.interpolate(torch.rand(4, 1, 5, 5, generator=key), 64, mode="bicubic").sigmoid()
    alpha = (shapes > shapes.flatten(2).median(dim=2).values[..., None, None]).float() * 255
    colours = F.interpolate(torch.rand(12, 3, 8, 8, generator=key), 64, mode="bilinear") * 255
    pictures = torch.cat([colours, alpha[things]], dim=1).to(torch.uint8)
    words = vocabulary("abcd")
    return IconScenes(Icons(things, styles, pictures), words, ("x", "y", "z"), 8, 0.0, 1, smallest=0.84, places=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_line_up_finds_the_style(data: IconScenes, noise: float) -> None:
    rows = torch.arange(len(data))
    pixels = data.pixels(rows)
    pixels = pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2))
    icon = data.plan["first"]
    found = line_up(pixels, data.icons.things[icon], data.plan["background"], data.icons)
    assert torch.equal(found, data.icons.styles[icon])


def test_a_line_up_says_which_of_two_is_nearer(data: IconScenes) -> None:
    small = replace(data, variants=1, smallest=0.98, places=0.0)
    small.plan["background"].zero_()
    one, other = (small.pixels(torch.tensor([row])) for row in (0, 1))
    for share, style in ((0.65, 0), (0.35, 1)):
        mixed = share * one + (1 - share) * other
        found = line_up(mixed, torch.tensor([0]), small.plan["background"][:1], small.icons)
        assert found.item() == style


def test_the_ground_is_read_from_the_rim(data: IconScenes) -> None:
    small = replace(data, smallest=0.5, places=0.0)
    grounds = small.plan["background"]
    assert torch.equal(ground_of(small.pixels(torch.arange(len(small)))), grounds)
    assert set(grounds.tolist()) == set(range(len(BACKGROUND_NAMES)))
