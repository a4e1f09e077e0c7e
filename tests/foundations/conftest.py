"""The same tensors in the foundations and in torch, and their comparison to 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradina.foundations.tensor import Tensor

Pair = tuple[Tensor, torch.Tensor]


def flat(tensor: torch.Tensor | None) -> Any:
    assert tensor is not None
    return pytest.approx(tensor.detach().flatten().tolist(), abs=1e-6)


@pytest.fixture
def approx() -> Callable[[torch.Tensor | None], Any]:
    """The flat values of a torch tensor, to be compared with to 1e-6."""
    return flat


@pytest.fixture
def pair() -> Callable[..., Pair]:
    """Equal random tensors of a shape, both with requires_grad."""

    def pair(*shape: int, seed: int = 0, positive: bool = False) -> Pair:
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = x.abs() + 0.1 if positive else x
        return Tensor(x.tolist(), requires_grad=True), x.clone().requires_grad_()

    return pair


@pytest.fixture
def agree() -> Callable[..., None]:
    """Asserts equal values, and equal gradients of a randomly weighted sum of them."""

    def agree(call: Callable[..., Any], reference: Callable[..., Any], *pairs: Pair) -> None:
        a, b = call(*(x for x, _ in pairs)), reference(*(xt for _, xt in pairs))
        assert a.shape == tuple(b.shape)
        assert a.values == flat(b)
        weights = torch.randn(b.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        (a * Tensor(weights.flatten().tolist(), a.shape)).sum().backward()
        (b * weights).sum().backward()
        for x, xt in pairs:
            assert x.grad == flat(xt.grad)

    return agree
