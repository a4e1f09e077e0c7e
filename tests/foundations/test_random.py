"""The random generator: its distributions, its seeds, its refusals."""

from __future__ import annotations

import math

import pytest

from gradina.foundations.random import Random


def test_uniform_covers_its_range_evenly() -> None:
    random = Random(7)
    samples = [random.uniform() for _ in range(20000)]
    assert 0 <= min(samples) < 0.001
    assert 0.999 < max(samples) < 1
    assert sum(samples) / len(samples) == pytest.approx(0.5, abs=0.01)


def test_normal_has_its_mean_and_standard_deviation() -> None:
    random = Random(7)
    samples = [random.normal(2, 3) for _ in range(20000)]
    mean = sum(samples) / len(samples)
    assert mean == pytest.approx(2, abs=0.1)
    assert math.sqrt(sum((x - mean) ** 2 for x in samples) / len(samples)) == pytest.approx(3, abs=0.1)
    assert sum(abs(x - 2) < 3 for x in samples) / len(samples) == pytest.approx(0.6827, abs=0.02)


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert [Random(5).uniform() for _ in range(2)] == [Random(5).uniform() for _ in range(2)]
    assert Random(5).uniform() != Random(6).uniform()
    with pytest.raises(ValueError, match=r"seed: got 1.5, expected an integer"):
        Random(1.5)  # type: ignore[arg-type]


def test_randrange_is_uniform() -> None:
    random = Random(7)
    counts = [0] * 6
    for _ in range(6000):
        counts[random.randrange(6)] += 1
    assert all(850 < n < 1150 for n in counts)
    with pytest.raises(ValueError, match="stop: got 0"):
        random.randrange(0)


def test_shuffled_gives_every_permutation() -> None:
    random = Random(1)
    assert len({tuple(random.shuffled("abc")) for _ in range(200)}) == 6
