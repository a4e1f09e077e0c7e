"""The foundations against torch: values and gradients to 1e-6, and what must be refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradina.foundations
from gradina.foundations import layers
from gradina.foundations.data import batches, read_idx
from gradina.foundations.learning import SGD, Adam
from gradina.foundations.matrix import by_index, by_library, by_rows
from gradina.foundations.random import Random
from gradina.foundations.tensor import Tensor, common

Torch = torch.Tensor


def pair(*shape: int, seed: int = 0, positive: bool = False) -> tuple[Tensor, Torch]:
    """The same numbers here and in torch, both learning."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x.abs() + 0.1 if positive else x
    return Tensor(x.tolist(), learns=True), x.clone().requires_grad_()


def close(ours: Any, theirs: Torch) -> bool:
    return torch.allclose(
        torch.tensor(ours, dtype=torch.float64).reshape(theirs.shape), theirs.detach(), atol=1e-6, rtol=1e-6
    )


def agree(call: Callable[..., Any], theirs: Callable[..., Any], *pairs: tuple[Tensor, Torch]) -> None:
    """Equal values, and equal gradients of a sum that weighs each number otherwise."""
    a, b = call(*(ours for ours, _ in pairs)), theirs(*(torchs for _, torchs in pairs))
    assert a.shape == tuple(b.shape)
    assert close(a.values, b)
    weights = torch.randn(b.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (a * Tensor(weights.flatten().tolist(), a.shape)).sum().backward()
    (b * weights).sum().backward()
    for ours, torchs in pairs:
        assert ours.grad is not None
        assert torchs.grad is not None
        assert close(ours.grad, torchs.grad)


def test_nothing_but_the_standard_library_is_used() -> None:
    allowed = {"__future__", "gradina", *sys.stdlib_module_names} - {"array", "ctypes"}
    for path in Path(gradina.foundations.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] in allowed, f"{path.name}: {line}"
                assert not words[1].startswith("gradina") or words[1].startswith("gradina.foundations")


# Chance


def test_chance_is_even_normal_and_the_same_again() -> None:
    random = Random(7)
    even = [random.uniform() for _ in range(20000)]
    assert 0 <= min(even) < 0.001
    assert 0.999 < max(even) < 1
    assert sum(even) / len(even) == pytest.approx(0.5, abs=0.01)
    bell = [random.normal(2, 3) for _ in range(20000)]
    mean = sum(bell) / len(bell)
    assert mean == pytest.approx(2, abs=0.1)
    assert math.sqrt(sum((x - mean) ** 2 for x in bell) / len(bell)) == pytest.approx(3, abs=0.1)
    assert sum(abs(x - 2) < 3 for x in bell) / len(bell) == pytest.approx(0.6827, abs=0.02)
    assert [Random(5).uniform() for _ in range(2)] == [Random(5).uniform() for _ in range(2)]
    assert Random(5).uniform() != Random(6).uniform()
    counts = [0] * 6
    for _ in range(6000):
        counts[random.below(6)] += 1
    assert all(850 < n < 1150 for n in counts)


def test_shuffled_keeps_all_and_every_order_comes() -> None:
    random = Random(1)
    seen = {tuple(random.shuffled("abc")) for _ in range(200)}
    assert len(seen) == 6
    with pytest.raises(ValueError, match=r"seed: got 1.5, expected a whole number"):
        Random(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count: got 0"):
        random.below(0)


# Matrices


@pytest.mark.parametrize("way", [by_index, by_rows, by_library])
def test_each_product_is_the_product(way: Callable[..., Any]) -> None:
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    assert close(way(a.tolist(), b.tolist()), a @ b)
    with pytest.raises(ValueError, match="a is 2x3 and b is 2x3: expected as many columns of a as rows of b"):
        way([[1, 2, 3]] * 2, [[1, 2, 3]] * 2)
    with pytest.raises(ValueError, match="b: expected rows of one length"):
        way([[1, 2]], [[1, 2], [3]])


# Tensors

OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, [(2, 3), (2, 3)]),
    "add, repeated": (lambda a, b: a + b, lambda a, b: a + b, [(4, 1, 3), (2, 1)]),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b, [(2, 3), (3,)]),
    "multiply, itself": (lambda a: a * a, lambda a: a * a, [(2, 3)]),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b, [(2, 3), (2, 1)]),
    "numbers": (lambda a: 3 - 2 * a + 1, lambda a: 3 - 2 * a + 1, [(4,)]),
    "matrices": (lambda a, b: a @ b, lambda a, b: a @ b, [(4, 5), (5, 3)]),
    "exp": (lambda a: a.exp(), lambda a: a.exp(), [(5,)]),
    "tanh": (layers.tanh, torch.tanh, [(2, 3)]),
    "relu": (layers.relu, F.relu, [(3, 4)]),
    "sigmoid": (layers.sigmoid, torch.sigmoid, [(3, 4)]),
    "silu": (layers.silu, F.silu, [(3, 4)]),
    "sum": (lambda a: a.sum(), lambda a: a.sum(), [(2, 3)]),
    "sum, axis": (lambda a: a.sum(1), lambda a: a.sum(1), [(2, 3, 4)]),
    "mean, last axis": (lambda a: a.mean(-1), lambda a: a.mean(-1), [(2, 3, 4)]),
    "permute": (lambda a: a.permute(2, 0, 1), lambda a: a.permute(2, 0, 1), [(2, 3, 4)]),
    "reshape": (lambda a: a.reshape(3, 4), lambda a: a.reshape(3, 4), [(2, 6)]),
    "log_softmax": (layers.log_softmax, lambda a: F.log_softmax(a, 1), [(3, 5)]),
    "normalised": (layers.normalised, lambda a: F.layer_norm(a, (5,)), [(3, 5)]),
    "cross_entropy": (
        lambda a: layers.cross_entropy(a, [2, 0, 4]), lambda a: F.cross_entropy(a, torch.tensor([2, 0, 4])), [(3, 5)],
    ),
    "mse": (layers.mse, F.mse_loss, [(3, 4), (3, 4)]),
    "a longer way": (
        lambda a, b: (layers.tanh(a @ b) * a.sum(1).reshape(4, 1)).mean(0) + b.sum(0),
        lambda a, b: (torch.tanh(a @ b) * a.sum(1, keepdim=True)).mean(0) + b.sum(0),
        [(4, 5), (5, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_and_gradients_are_torchs(name: str) -> None:
    ours, theirs, shapes = OPERATIONS[name]
    agree(ours, theirs, *(pair(*shape, seed=i) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("name", ["divide", "power", "log", "one over"])
def test_what_needs_positive_numbers(name: str) -> None:
    ways: dict[str, tuple[Callable[..., Any], int]] = {
        "divide": (lambda a, b: a / b, 2), "power": (lambda a: a**1.7, 1), "log": (lambda a: a.log(), 1),
        "one over": (lambda a: 1 / a, 1),
    }  # fmt: skip
    way, count = ways[name]
    agree(way, way, *(pair(3, 4, seed=i, positive=True) for i in range(count)))


def test_gradients_add_up_until_they_are_used() -> None:
    x = Tensor([1.0, 2.0], learns=True)
    for _ in range(2):
        (x * 3).sum().backward()
    assert x.grad == [6.0, 6.0]
    y = x.sum()
    (y * y + y).backward()
    assert x.grad == [6.0 + 2 * 3 + 1] * 2


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Tensor([[1, 2], [3]]), "expected rows of one length"),
    (lambda: Tensor([1, 2, 3], (2, 2)), "got 3 numbers, expected 4 for 2x2"),
    (
        lambda: Tensor([[1.0, 2.0]]) + Tensor([1.0, 2.0, 3.0]),
        "1x2 and 3 do not go together: sides have",
    ),
    (lambda: Tensor([[1.0, 2.0]]) @ Tensor([[1.0, 2.0]]), "cannot multiply 1x2 by 1x2: expected n x k and k x m"),
    (lambda: Tensor([1.0]) @ Tensor([[1.0]]), "cannot multiply 1 by 1x1"),
    (lambda: Tensor([1.0, 2.0]).reshape(3), "cannot see 2 as 3"),
    (lambda: Tensor([1.0, 2.0]).sum(1), "axis: got 1, expected one of the 1 of 2"),
    (lambda: Tensor([[1.0, 2.0]]).permute(0, 0), "order: got"),
    (lambda: Tensor([1.0, 2.0]).backward(), "got 2, expected one number"),
    (lambda: Tensor([1.0, 2.0]).item(), "got 2, expected one number"),
    (lambda: Tensor([1.0, 2.0]).broadcast((3,)), "2 and 3 do not go together"),
    (lambda: Tensor([[1.0, 2.0]]).broadcast((2,)), "1x2 cannot be repeated to 2"),
    (lambda: layers.mse(Tensor([1.0]), Tensor([1.0, 2.0])), "got 1 and 2, expected one shape"),
    (lambda: layers.cross_entropy(Tensor([[1.0, 2.0]]), [2]), "classes: expected 1 numbers from 0 to 1"),
    (lambda: layers.normalised(Tensor([1.0])), "expected rows: n x width"),
    (lambda: layers.Conv2d(2, 1, 3, Random(0))(Tensor([[[[1.0]]]])), "got 1x1x1x1, expected n x 2 x height x width"),
    (
        lambda: layers.Conv2d(1, 1, 3, Random(0))(Tensor([[[[1.0]]]])),
        "1x1 is too small for a kernel of 3",
    ),
    (lambda: SGD([Tensor([1.0])], 0.1), "parameters: expected tensors that learn"),
    (lambda: Adam([Tensor([1.0], learns=True)], 0), "lr: got 0, expected more than 0"),
    (lambda: list(batches([1], 0, Random(0))), "size: got 0"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED, ids=[words[:30] for _, words in REFUSED])
def test_what_has_no_meaning_is_refused(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_shapes_that_go_together() -> None:
    assert common((2, 1, 3), (4, 1)) == (2, 4, 3)
    assert common((), (2,)) == (2,)


# Layers


def test_linear_is_torchs() -> None:
    ours, theirs = layers.Linear(4, 3, Random(0)), nn.Linear(4, 3, dtype=torch.float64)
    theirs.weight.data = torch.tensor(ours.weight.T.tolist(), dtype=torch.float64)
    theirs.bias.data = torch.tensor(ours.bias.tolist(), dtype=torch.float64)
    agree(ours, theirs, pair(5, 4))
    assert close(
        ours.weight.T.values if ours.weight.grad is None else Tensor(ours.weight.grad, (4, 3)).T.values,
        theirs.weight.grad,
    )
    assert close(ours.bias.grad, theirs.bias.grad)
    assert max(abs(x) for x in ours.weight.values) <= 0.5


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_convolution_is_torchs(stride: int, padding: int) -> None:
    ours = layers.Conv2d(2, 3, 3, Random(0), stride, padding)
    weight = torch.tensor(ours.weight.tolist(), dtype=torch.float64).T.reshape(3, 2, 3, 3).contiguous().requires_grad_()
    bias = torch.tensor(ours.bias.tolist(), dtype=torch.float64)
    agree(ours, lambda x: F.conv2d(x, weight, bias, stride, padding), pair(2, 2, 6, 5))
    assert ours.weight.grad is not None
    assert weight.grad is not None
    assert close(ours.weight.grad, weight.grad.reshape(3, 18).T)


def test_layer_norm_is_torchs() -> None:
    agree(layers.LayerNorm(5), nn.LayerNorm(5, dtype=torch.float64), pair(3, 5))


# Learning

WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sgd": (lambda p: SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (lambda p: SGD(p, 0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (lambda p: SGD(p, 0.1, 0.9, True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    "adam": (lambda p: Adam(p, 0.1), lambda p: torch.optim.Adam(p, 0.1)),
}


@pytest.mark.parametrize("name", WAYS)
def test_optimizers_walk_as_torchs_do(name: str) -> None:
    (x, xt), (y, yt) = pair(3, 2), pair(2, 1, seed=1)
    ours, theirs = (way(p) for way, p in zip(WAYS[name], ([x, y], [xt, yt]), strict=True))
    for _ in range(10):
        layers.tanh(x @ y).sum().backward()
        ours.step()
        theirs.zero_grad()
        torch.tanh(xt @ yt).sum().backward()
        theirs.step()
    assert close(x.values, xt)
    assert close(y.values, yt)


def test_a_small_network_learns_what_is_not_linear() -> None:
    random = Random(3)
    first, second = layers.Linear(2, 8, random), layers.Linear(8, 1, random)
    optimizer = Adam([*first.parameters, *second.parameters], 0.05)
    points, answers = Tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), Tensor([[0], [1], [1], [0]])
    for _ in range(200):
        loss = layers.mse(second(layers.tanh(first(points))), answers)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


# Data


def test_batches_hold_everything_once() -> None:
    found = list(batches(list(range(10)), 4, Random(0)))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert sorted(x for batch in found for x in batch) == list(range(10))
    assert found != list(batches(list(range(10)), 4, Random(1)))


def test_idx_files_are_read_and_broken_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "a-idx"
    path.write_bytes(b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 2, 3)) + bytes(range(12)))
    assert read_idx(path) == ((2, 2, 3), bytes(range(12)))
    assert read_idx(path, 1) == ((1, 2, 3), bytes(range(6)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="11 bytes of data where the header says 2x2x3"):
        read_idx(path)
    path.write_bytes(b"PNG")
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes"):
        read_idx(path)
