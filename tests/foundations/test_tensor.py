"""Tensors against torch: values and gradients to 1e-6, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gradina.foundations.tensor import Tensor, broadcast_shape

OPERATIONS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "add": (lambda a, b: a + b, [(2, 3), (2, 3)]),
    "add, broadcast": (lambda a, b: a + b, [(4, 1, 3), (2, 1)]),
    "multiply": (lambda a, b: a * b, [(2, 3), (3,)]),
    "square": (lambda a: a * a, [(2, 3)]),
    "subtract": (lambda a, b: a - b, [(2, 3), (2, 1)]),
    "scalars": (lambda a: 3 - 2 * a + 1, [(4,)]),
    "matmul": (lambda a, b: a @ b, [(4, 5), (5, 3)]),
    "exp": (lambda a: a.exp(), [(5,)]),
    "sum": (lambda a: a.sum(), [(2, 3)]),
    "sum, axis": (lambda a: a.sum(1), [(2, 3, 4)]),
    "mean, last axis": (lambda a: a.mean(-1), [(2, 3, 4)]),
    "permute": (lambda a: a.permute(2, 0, 1), [(2, 3, 4)]),
    "reshape": (lambda a: a.reshape(3, 4), [(2, 6)]),
    "composition": (lambda a, b: ((a @ b).exp() * a.sum(1).reshape(4, 1)).mean(0) + b.sum(0), [(4, 5), (5, 3)]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_and_gradients_are_torchs(name: str, pair: Callable[..., Any], agree: Callable[..., None]) -> None:
    operation, shapes = OPERATIONS[name]
    agree(operation, operation, *(pair(*shape, seed=i) for i, shape in enumerate(shapes)))


POSITIVE: dict[str, tuple[Callable[..., Any], int]] = {
    "divide": (lambda a, b: a / b, 2),
    "power": (lambda a: a**1.7, 1),
    "log": (lambda a: a.log(), 1),
    "reciprocal": (lambda a: 1 / a, 1),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_operations_on_positive_numbers_are_torchs(
    name: str, pair: Callable[..., Any], agree: Callable[..., None]
) -> None:
    operation, count = POSITIVE[name]
    agree(operation, operation, *(pair(3, 4, seed=i, positive=True) for i in range(count)))


def test_gradients_accumulate() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    for _ in range(2):
        (x * 3).sum().backward()
    assert x.grad == [6.0, 6.0]
    y = x.sum()
    (y * y + y).backward()
    assert x.grad == [6.0 + 2 * 3 + 1] * 2


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Tensor([[1, 2], [3]]), "expected rows of one length"),
    (lambda: Tensor([1, 2, 3], (2, 2)), "got 3 values, expected 4 for 2x2"),
    (lambda: Tensor([[1.0, 2.0]]) + Tensor([1.0, 2.0, 3.0]), "cannot broadcast 1x2 and 3: sides have"),
    (lambda: Tensor([[1.0, 2.0]]) @ Tensor([[1.0, 2.0]]), "cannot multiply 1x2 by 1x2: expected n x k and k x m"),
    (lambda: Tensor([1.0]) @ Tensor([[1.0]]), "cannot multiply 1 by 1x1"),
    (lambda: Tensor([1.0, 2.0]).reshape(3), "cannot reshape 2 to 3"),
    (lambda: Tensor([1.0, 2.0]).sum(1), "axis: got 1, expected one of the 1 of 2"),
    (lambda: Tensor([[1.0, 2.0]]).permute(0, 0), "order: got"),
    (lambda: Tensor([1.0, 2.0]).backward(), "got 2, expected one number"),
    (lambda: Tensor([1.0, 2.0]).item(), "got 2, expected one number"),
    (lambda: Tensor([1.0, 2.0]).broadcast((3,)), "cannot broadcast 2 and 3"),
    (lambda: Tensor([[1.0, 2.0]]).broadcast((2,)), "cannot broadcast 1x2 to 2"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_invalid_shapes_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_broadcast_shape() -> None:
    assert broadcast_shape((2, 1, 3), (4, 1)) == (2, 4, 3)
    assert broadcast_shape((), (2,)) == (2,)
