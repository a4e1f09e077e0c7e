"""Datasets: random draws depend on their key alone."""

from __future__ import annotations

import torch

from gradina.training.data.dataset import generator


def test_a_generator_depends_on_its_key_alone() -> None:
    a, b, c = (torch.randn(4, generator=generator(*key)) for key in ((1, "vae", 2), (1, "vae", 2), (1, "vae", 3)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
