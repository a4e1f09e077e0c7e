"""The nearest-icon test finds the style of pictures at any scale and offset; the rim gives the background."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from classifiers import background_of, nearest_icon_style
from torch.nn import functional as F

from gradina.training.data.icons import Icons, vocabulary
from gradina.training.data.synthetic import BACKGROUND_NAMES, IconScenes


@pytest.fixture(scope="module")
def data() -> IconScenes:
    """Four things in three styles: one shape per thing, with other colours and details in each style."""
    key = torch.Generator().manual_seed(0)
    things = torch.arange(4).repeat_interleave(3)
    styles = torch.arange(3).repeat(4)
    shapes = F.interpolate(torch.rand(4, 1, 5, 5, generator=key), 64, mode="bicubic").sigmoid()
    alpha = (shapes > shapes.flatten(2).median(dim=2).values[..., None, None]).float() * 255
    colours = F.interpolate(torch.rand(12, 3, 8, 8, generator=key), 64, mode="bilinear") * 255
    pictures = torch.cat([colours, alpha[things]], dim=1).to(torch.uint8)
    words = vocabulary("abcd")
    return IconScenes(Icons(things, styles, pictures), words, ("x", "y", "z"), 8, 0.0, 1, smallest=0.84, jitter=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_nearest_icon_style_finds_the_style(data: IconScenes, noise: float) -> None:
    pixels = data.pixels(torch.arange(len(data)))
    pixels = pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2))
    icon = data.plan["first"]
    found = nearest_icon_style(pixels, data.icons.things[icon], data.plan["background"], data.icons)
    assert torch.equal(found, data.icons.styles[icon])


def test_nearest_icon_style_of_a_blend_is_that_of_the_larger_part(data: IconScenes) -> None:
    single = replace(data, variants=1, smallest=0.98, jitter=0.0)
    single.plan["background"].zero_()
    one, other = (single.pixels(torch.tensor([row])) for row in (0, 1))
    for weight, style in ((0.65, 0), (0.35, 1)):
        blend = weight * one + (1 - weight) * other
        found = nearest_icon_style(blend, torch.tensor([0]), single.plan["background"][:1], single.icons)
        assert found.item() == style


def test_background_is_read_from_the_rim(data: IconScenes) -> None:
    small = replace(data, smallest=0.5, jitter=0.0)
    grounds = small.plan["background"]
    assert torch.equal(background_of(small.pixels(torch.arange(len(small)))), grounds)
    assert set(grounds.tolist()) == set(range(len(BACKGROUND_NAMES)))
