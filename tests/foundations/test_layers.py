"""Layers, activations and losses against torch: values and gradients to 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradina.foundations import layers
from gradina.foundations.random import Random
from gradina.foundations.tensor import Tensor

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "tanh": (layers.tanh, torch.tanh, [(2, 3)]),
    "relu": (layers.relu, F.relu, [(3, 4)]),
    "sigmoid": (layers.sigmoid, torch.sigmoid, [(3, 4)]),
    "silu": (layers.silu, F.silu, [(3, 4)]),
    "log_softmax": (layers.log_softmax, lambda a: F.log_softmax(a, 1), [(3, 5)]),
    "layer_norm": (layers.layer_norm, lambda a: F.layer_norm(a, (5,)), [(3, 5)]),
    "cross_entropy": (
        lambda a: layers.cross_entropy(a, [2, 0, 4]), lambda a: F.cross_entropy(a, torch.tensor([2, 0, 4])), [(3, 5)],
    ),
    "mse": (layers.mse, F.mse_loss, [(3, 4), (3, 4)]),
    "composition": (
        lambda a, b: (layers.tanh(a @ b) * a.sum(1).reshape(4, 1)).mean(0) + b.sum(0),
        lambda a, b: (torch.tanh(a @ b) * a.sum(1, keepdim=True)).mean(0) + b.sum(0),
        [(4, 5), (5, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_torchs(name: str, pair: Callable[..., Any], agree: Callable[..., None]) -> None:
    function, reference, shapes = FUNCTIONS[name]
    agree(function, reference, *(pair(*shape, seed=i) for i, shape in enumerate(shapes)))


def test_linear_is_torchs(pair: Callable[..., Any], agree: Callable[..., None], approx: Callable[..., Any]) -> None:
    ours, theirs = layers.Linear(4, 3, Random(0)), nn.Linear(4, 3, dtype=torch.float64)
    theirs.weight.data = torch.tensor(ours.weight.T.tolist(), dtype=torch.float64)
    theirs.bias.data = torch.tensor(ours.bias.tolist(), dtype=torch.float64)
    agree(ours, theirs, pair(5, 4))
    assert theirs.weight.grad is not None
    assert ours.weight.grad == approx(theirs.weight.grad.T)
    assert ours.bias.grad == approx(theirs.bias.grad)
    assert max(abs(x) for x in ours.weight.values) <= 0.5


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_convolution_is_torchs(
    stride: int, padding: int, pair: Callable[..., Any], agree: Callable[..., None], approx: Callable[..., Any]
) -> None:
    ours = layers.Conv2d(2, 3, 3, Random(0), stride, padding)
    weight = torch.tensor(ours.weight.tolist(), dtype=torch.float64).T.reshape(3, 2, 3, 3).contiguous().requires_grad_()
    bias = torch.tensor(ours.bias.tolist(), dtype=torch.float64)
    agree(ours, lambda x: F.conv2d(x, weight, bias, stride, padding), pair(2, 2, 6, 5))
    assert weight.grad is not None
    assert ours.weight.grad == approx(weight.grad.reshape(3, 18).T)


def test_layer_norm_is_torchs(pair: Callable[..., Any], agree: Callable[..., None]) -> None:
    agree(layers.LayerNorm(5), nn.LayerNorm(5, dtype=torch.float64), pair(3, 5))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: layers.mse(Tensor([1.0]), Tensor([1.0, 2.0])), "got 1 and 2, expected one shape"),
    (lambda: layers.cross_entropy(Tensor([[1.0, 2.0]]), [2]), "classes: expected 1 integers from 0 to 1"),
    (lambda: layers.layer_norm(Tensor([1.0])), "expected rows: n x width"),
    (lambda: layers.Conv2d(2, 1, 3, Random(0))(Tensor([[[[1.0]]]])), "got 1x1x1x1, expected n x 2 x height x width"),
    (lambda: layers.Conv2d(1, 1, 3, Random(0))(Tensor([[[[1.0]]]])), "1x1 is too small for a kernel of 3"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_invalid_inputs_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
