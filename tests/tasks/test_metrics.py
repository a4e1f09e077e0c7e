"""Metrics against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from gradina.tasks.metrics import psnr


@pytest.mark.parametrize(("error", "peak"), [(0.1, 1.0), (0.01, 1.0), (1.0, 255.0), (2.0, 2.0)])
def test_psnr_of_a_constant_error(error: float, peak: float) -> None:
    picture = torch.rand(3, 5, 7, dtype=torch.float64)
    assert psnr(picture, picture + error, peak) == pytest.approx(20 * math.log10(peak / error))


def test_psnr_of_noise() -> None:
    noise = torch.randn(3, 200, 200, generator=torch.Generator().manual_seed(0)) * 0.05
    assert psnr(torch.zeros(3, 200, 200), noise) == pytest.approx(-20 * math.log10(0.05), abs=0.05)


def test_psnr_of_equal_and_of_opposite_pictures() -> None:
    black, white = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    assert psnr(black, black) == math.inf
    assert psnr(black, white) == 0
    assert psnr(white, black) == psnr(black, white)


def test_psnr_of_bytes_and_halves_is_exact() -> None:
    one, other = torch.full((4, 4), 255, dtype=torch.uint8), torch.full((4, 4), 254, dtype=torch.uint8)
    assert psnr(one, other, peak=255) == psnr(other, one, peak=255) == pytest.approx(20 * math.log10(255))
    assert psnr(torch.tensor([1.0]).half(), torch.tensor([0.5]).half()) == pytest.approx(20 * math.log10(2))


def test_psnr_of_different_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*\(1, 4, 4\)"):
        psnr(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4))
