"""Noise belongs to a seed: not to its batch, not to the global generator, not to the order of the questions."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from gradina.diffusion.noise import Brownian, Noise

SHAPE = (4, 8, 8)


def test_noise_equals_a_list_of_generators_in_diffusers() -> None:
    seeds = [1024, 0, 2**64 - 1]
    noise = Noise(seeds, SHAPE)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for _ in range(3):
        expected = torch.cat([torch.randn((1, *SHAPE), generator=generator) for generator in generators])
        assert torch.equal(noise(), expected)


def test_noise_of_a_seed_does_not_depend_on_the_batch() -> None:
    together, alone = Noise([5, 6, 7], SHAPE), Noise([6], SHAPE)
    for _ in range(2):
        assert torch.equal(together()[1:2], alone())
    assert torch.equal(together.brownian(3.0, 2.0)[1:2], alone.brownian(3.0, 2.0))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    noise = Noise([1], SHAPE)
    noise()
    noise.brownian(2.0, 1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_has_the_requested_dtype() -> None:
    noise = Noise([1], SHAPE, dtype=torch.float16)
    assert noise().dtype == noise.brownian(2.0, 1.0).dtype == torch.float16


def test_brownian_increments_add_up() -> None:
    noise = Noise([1, 2], SHAPE)
    a, b, c = 0.3, 1.7, 9.0
    whole = noise.brownian(c, a) * math.sqrt(c - a)
    parts = noise.brownian(c, b) * math.sqrt(c - b) + noise.brownian(b, a) * math.sqrt(b - a)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
    assert torch.equal(noise.brownian(c, a), -noise.brownian(a, c))


def test_a_brownian_path_does_not_depend_on_the_order_of_calls() -> None:
    levels = [0.0, 0.03, 0.5, 1.0, 1.001, 14.6, 4096.0, 1e6]
    first = [Brownian(3, (2, 2))(level) for level in levels]
    shuffled = list(enumerate(levels))
    random.Random(0).shuffle(shuffled)
    path = Brownian(3, (2, 2))
    assert all(torch.equal(path(level), first[i]) for i, level in shuffled)
    assert not torch.equal(Brownian(4, (2, 2))(1.0), path(1.0))


@pytest.mark.parametrize(("a", "b"), [(14.6, 11.2), (11.2, 2.0), (2.0, 1.98), (0.04, 0.03), (4096.0, 2254.0)])
def test_increments_have_unit_variance(a: float, b: float) -> None:
    increments = Noise(range(8), (64, 64)).brownian(a, b)
    count = increments.numel()
    assert increments.mean().item() == pytest.approx(0, abs=4 / math.sqrt(count))
    assert increments.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / count) + 0.005)


def test_increments_that_do_not_overlap_are_independent() -> None:
    noise = Noise(range(8), (64, 64))
    levels = [14.6, 9.0, 5.0, 1.0, 0.3, 0.03]
    draws = [noise().flatten(), *(noise.brownian(a, b).flatten() for a, b in itertools.pairwise(levels))]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max().item() < 5 / math.sqrt(draws[0].numel())
