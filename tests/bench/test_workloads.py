"""Operation counts against the published ones."""

from __future__ import annotations

import pytest

from gradina.bench.workloads import sd15

ATTENTION = ((2, 40, 4096, 5), (2, 80, 1024, 5), (2, 160, 256, 5), (2, 160, 64, 1))  # batch, width, tokens, layers


def test_gflop_agrees_with_published_counts() -> None:
    counted = sd15().gflop
    both = sum(4 * b * 8 * n * m * d for b, d, n, layers in ATTENTION for m in (n, 77) for _ in range(layers)) / 1e9
    assert counted["U-Net step"] == pytest.approx(1354 + both, rel=0.01), "published counts omit attention"
    assert counted["decoder"] == pytest.approx(2480, rel=0.02)
    b, n, width = 2, 77, 768
    layer = 4 * n * width * width + 2 * n * width * 4 * width + 2 * n * n * width
    assert counted["text encoder"] == pytest.approx(2 * b * 12 * layer / 1e9, rel=0.02)
