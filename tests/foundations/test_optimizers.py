"""Optimizers against torch, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradina.foundations import layers
from gradina.foundations.optimizers import SGD, Adam
from gradina.foundations.random import Random
from gradina.foundations.tensor import Tensor

OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sgd": (lambda p: SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (lambda p: SGD(p, 0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (lambda p: SGD(p, 0.1, 0.9, True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    "adam": (lambda p: Adam(p, 0.1), lambda p: torch.optim.Adam(p, 0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_torchs(name: str, pair: Callable[..., Any], approx: Callable[..., Any]) -> None:
    (x, xt), (y, yt) = pair(3, 2), pair(2, 1, seed=1)
    ours, theirs = (make(p) for make, p in zip(OPTIMIZERS[name], ([x, y], [xt, yt]), strict=True))
    for _ in range(10):
        layers.tanh(x @ y).sum().backward()
        ours.step()
        theirs.zero_grad()
        torch.tanh(xt @ yt).sum().backward()
        theirs.step()
    assert x.values == approx(xt)
    assert y.values == approx(yt)


def test_a_small_network_learns_xor() -> None:
    random = Random(3)
    first, second = layers.Linear(2, 8, random), layers.Linear(8, 1, random)
    optimizer = Adam([*first.parameters, *second.parameters], 0.05)
    points, answers = Tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), Tensor([[0], [1], [1], [0]])
    for _ in range(200):
        loss = layers.mse(second(layers.tanh(first(points))), answers)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: SGD([Tensor([1.0])], 0.1), "parameters: expected at least one tensor, and all with requires_grad"),
    (lambda: Adam([Tensor([1.0], requires_grad=True)], 0), "lr: got 0, expected more than 0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_invalid_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
