"""Datasets: random draws depend on their key alone."""

from __future__ import annotations

import torch

from gradina.training.data.dataset import augment, generator


def test_a_generator_depends_on_its_key_alone() -> None:
    a, b, c = (torch.randn(4, generator=generator(*key)) for key in ((1, "vae", 2), (1, "vae", 2), (1, "vae", 3)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_augmented_pictures_are_rotated_by_a_few_degrees() -> None:
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


def test_augmentation_hardly_changes_colours() -> None:
    red = torch.tensor([1.0, -0.8, -0.8])[None, :, None, None].expand(32, 3, 8, 8)
    seen = augment(red, 20, generator(3))
    assert (seen[:, 0] > 0.5).all()
    assert (seen[:, 1:] < -0.3).all()
