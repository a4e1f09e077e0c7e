"""What is done to pictures on their way into a stage."""

from __future__ import annotations

import torch

from gradina.training.data.dataset import augment, generator
from gradina.training.pretrain.stages import cropped


def test_a_crop_is_a_part_of_its_picture() -> None:
    pixels = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float()
    parts = cropped(pixels, 4, generator(1))
    assert parts.shape == (2, 3, 4, 4)
    for part, picture in zip(parts, pixels, strict=True):
        y, x = divmod(int(part[0, 0, 0]) % 64, 8)
        assert torch.equal(part, picture[:, y : y + 4, x : x + 4])
    assert cropped(pixels, None, generator(1)) is pixels
    assert cropped(pixels, 8, generator(1)) is pixels


def test_turned_pictures_show_the_same_a_little_otherwise() -> None:
    bar = torch.full((64, 3, 32, 32), -1.0)
    bar[:, :, 12:20, 2:30] = 1.0
    seen = augment(bar, 20, generator(2))
    assert seen.shape == bar.shape
    assert seen.abs().max() <= 1
    assert len({round(picture.sum().item(), 2) for picture in seen}) > 60, "each otherwise"
    assert (seen[:, :, 15:17, 15:17] > 0.5).all(), "the middle stays in the middle"
    assert (seen[:, :, :4, 15:17] < -0.5).all()
    mass = (seen[:, 0] + 1).clamp(0, 1)
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    angle = 0.5 * torch.atan2(2 * (mass * x * y).sum((1, 2)), (mass * (x**2 - y**2)).sum((1, 2)))
    assert 10 < angle.abs().max().rad2deg() < 26
    assert augment(bar, 0, generator(2)) is bar


def test_a_colour_stays_nearly_what_it_is() -> None:
    red = torch.tensor([1.0, -0.8, -0.8])[None, :, None, None].expand(32, 3, 8, 8)
    seen = augment(red, 20, generator(3))
    assert (seen[:, 0] > 0.5).all()
    assert (seen[:, 1:] < -0.3).all()
