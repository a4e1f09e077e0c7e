"""Likeness: the right size and offset are found, and each figure is that of its definition."""

from __future__ import annotations

import pytest
import torch
from classifiers import centred, over_background
from likeness import align, background, edge_energy, kernel, kernel_distance, placed, rim
from torch import Tensor
from torch.nn import functional as F

from gradina.training.data.icons import Icons
from gradina.training.data.synthetic import BACKGROUND_NAMES


@pytest.fixture(scope="module")
def icons() -> Icons:
    """Three icons of 128 x 128 pixels with soft outlines."""
    key = torch.Generator().manual_seed(0)
    small = torch.rand(3, 4, 9, 9, generator=key)
    pictures = (F.interpolate(small, 128, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    return Icons(torch.arange(3), torch.zeros(3, dtype=torch.long), pictures)


def moved(icons: Icons, row: int, ground: int, side: int, down: int, right: int) -> Tensor:
    """An icon at a size and offset on a background (3, 128, 128)."""
    layer = centred(icons.pictures[row : row + 1], side, 144)[..., 8 + down : 136 + down, 8 + right : 136 + right]
    return over_background(layer, BACKGROUND_NAMES[ground])[0]


@pytest.mark.parametrize(("side", "down", "right"), [(128, 0, 0), (122, 0, 0), (110, -8, 5), (103, 3, 8)])
def test_size_and_offset_are_found(icons: Icons, side: int, down: int, right: int) -> None:
    for row, ground in ((0, 0), (1, 7), (2, 1)):
        picture = moved(icons, row, ground, side, down, right)
        aligned = align(picture[None], icons, torch.tensor([row]), torch.tensor([ground]))
        assert torch.allclose(aligned.icons[0], picture, atol=1e-5)
        assert aligned.edges.item() == pytest.approx(1, abs=1e-4)


def test_psnr_is_that_of_added_noise(icons: Icons) -> None:
    picture = placed(icons, 1, 3)
    noisy = picture + 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    aligned = align(noisy[None], icons, torch.tensor([1]), torch.tensor([3]))
    assert aligned.psnr.item() == pytest.approx(20 * torch.log10(torch.tensor(2 / 0.1)).item(), abs=0.1)
    assert aligned.edges.item() > 1.1


def test_a_blurred_picture_has_less_edge_energy(icons: Icons) -> None:
    picture = placed(icons, 2, 0)[None]
    assert edge_energy(F.avg_pool2d(picture, 5, stride=1)) < 0.95 * edge_energy(picture)
    stripes = torch.tensor([-1.0, 1.0]).repeat(1, 3, 8, 4)
    assert edge_energy(stripes).item() == pytest.approx(1), "2 from left to right, 0 downwards"


def test_rim_is_0_of_an_even_background(icons: Icons) -> None:
    even = background(4).expand(1, 3, 128, 128).clone()
    assert rim(even).item() == pytest.approx(0, abs=1e-4)
    even[:, :, 40:80] += torch.randn(1, 3, 40, 128)
    assert rim(even).item() == pytest.approx(0, abs=1e-4), "the middle does not count"
    noisy = background(4) + torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 3 / 127.5
    assert rim(noisy).item() == pytest.approx(3, rel=0.1)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    key = torch.Generator().manual_seed(0)
    x, y, z = (
        torch.randn(60, 8, generator=key),
        torch.randn(60, 8, generator=key) + 1,
        torch.randn(60, 8, generator=key),
    )
    assert kernel_distance(x, y) > 10 * abs(kernel_distance(x, z))
    x, y = x.double(), y.double()
    total = 0.0
    for i in range(60):
        for j in range(60):
            total -= 2 * float(kernel(x[i : i + 1], y[j : j + 1])) / 60**2
            if i != j:
                total += float(kernel(x[i : i + 1], x[j : j + 1]) + kernel(y[i : i + 1], y[j : j + 1])) / (60 * 59)
    assert kernel_distance(x, y) == pytest.approx(total, rel=1e-6), "one subset of all"
