"""Computed in chunks, rows and tokens are what they are as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.nn import chunked
from gradina.nn.chunked import map_rows, map_tokens


@pytest.fixture(autouse=True)
def five_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk is five rows high."""
    monkeypatch.setattr(chunked, "_rows", lambda x, upsample: 5)


def test_each_row_is_computed_once_with_its_halo() -> None:
    seen: list[int] = []
    x = torch.arange(12.0).view(1, 1, 12, 1)
    assert torch.equal(map_rows(lambda rows, i: (seen.append(rows.shape[2]), rows)[1], x), x)
    assert seen == [6, 7, 3]
    upsampled = map_rows(lambda rows, i: F.interpolate(rows, scale_factor=(2.0, 1.0)), x, upsample=2)
    assert torch.equal(upsampled, x.repeat_interleave(2, dim=2))


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("height", [1, 4, 5, 6, 23])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_are_those_of_the_whole(height: int, halo: int, memory: torch.memory_format, in_place: bool) -> None:
    x = torch.randn(2, 3, height, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory)
    residual, weight = torch.randn_like(x), torch.randn(3, 3, 2 * halo + 1, 1)

    def fn(rows: Tensor, i: int = 0) -> Tensor:
        return F.conv2d(rows, weight, padding=(halo, 0)) + i

    expected = fn(x) + torch.tensor([0.0, 1.0])[:, None, None, None] + 2 * residual
    got = map_rows(fn, x, halo, residual=lambda at: 2 * residual[at], out=x if in_place else None)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got.data_ptr() == x.data_ptr()) == in_place


@pytest.mark.parametrize("count", [3, 4, 5, 23])
def test_tokens_are_those_of_the_whole(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "TOKENS", 8 * 8 * 4)
    seen: list[int] = []

    def fn(h: Tensor, x: Tensor) -> Tensor:
        seen.append(h.numel() // 8)
        return 2 * h + x

    h, x = torch.randn(2, count, 8), torch.randn(2, count, 8)
    assert torch.equal(map_tokens(fn, h, x), 2 * h + x)
    assert torch.equal(map_tokens(fn, h.mT.contiguous().mT, x.mT.contiguous().mT), 2 * h + x), "in any layout"
    assert set(seen) == ({2 * count} if count <= 4 else {8, 2 * count % 8} - {0})
