"""Layers, activations and losses, with PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product

from gradina.foundations.random import Random
from gradina.foundations.tensor import PADDING, Tensor, as_text


class Linear:
    """x (n, inputs) -> (n, outputs): x · weight + bias, initialised as in PyTorch."""

    def __init__(self, inputs: int, outputs: int, random: Random) -> None:
        self.weight, self.bias = _initial((inputs, outputs), random)
        self.parameters = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Conv2d:
    """x (n, channels, h, w) -> (n, outputs, h', w'), as the product of all patches by a matrix of weights (im2col)."""

    def __init__(
        self, channels: int, outputs: int, kernel: int, random: Random, stride: int = 1, padding: int = 0
    ) -> None:
        self.channels, self.kernel, self.stride, self.padding = channels, kernel, stride, padding
        self.weight, self.bias = _initial((channels * kernel * kernel, outputs), random)
        self.parameters = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        if len(x.shape) != 4 or x.shape[1] != self.channels:
            raise ValueError(f"got {as_text(x.shape)}, expected n x {self.channels} x height x width")
        n, _, h, w = x.shape
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in (h, w))
        if height < 1 or width < 1:
            raise ValueError(f"{h}x{w} is too small for a kernel of {self.kernel} with a padding of {self.padding}")
        index = _patch_index(x.shape, self.kernel, self.stride, self.padding)
        patches = x.gather(index, (n * height * width, self.weight.shape[0]))
        return (patches @ self.weight + self.bias).reshape(n, height, width, self.bias.shape[0]).permute(0, 3, 1, 2)


@cache
def _patch_index(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> tuple[int, ...]:
    """For each element of each patch its index in x."""
    n, channels, h, w = shape
    tops, lefts = (range(-padding, side + padding - kernel + 1, stride) for side in (h, w))
    index = []
    for i, top, left, c, dy, dx in product(range(n), tops, lefts, range(channels), range(kernel), range(kernel)):
        y, x = top + dy, left + dx
        index.append(((i * channels + c) * h + y) * w + x if 0 <= y < h and 0 <= x < w else PADDING)
    return tuple(index)


def _initial(shape: tuple[int, int], random: Random) -> tuple[Tensor, Tensor]:
    """Weights (inputs, outputs) and a bias (outputs,), uniform in ±1 / √inputs."""
    bound = 1 / math.sqrt(shape[0])
    weight, bias = ([random.uniform(-bound, bound) for _ in range(math.prod(s))] for s in (shape, shape[1:]))
    return Tensor(weight, shape, requires_grad=True), Tensor(bias, requires_grad=True)


class LayerNorm:
    """x (n, width) -> each row with mean 0 and variance 1, times a learned weight, plus a learned bias."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        self.eps = eps
        self.weight, self.bias = (Tensor([value] * width, requires_grad=True) for value in (1.0, 0.0))
        self.parameters = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.eps) * self.weight + self.bias


def layer_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each row of x (n, width) with mean 0 and variance 1."""
    if len(x.shape) != 2:
        raise ValueError(f"got {as_text(x.shape)}, expected rows: n x width")
    centred = x - x.mean(1).reshape(x.shape[0], 1)
    variance = (centred * centred).mean(1).reshape(x.shape[0], 1)
    return centred * (variance + eps) ** -0.5


def relu(x: Tensor) -> Tensor:
    """max(x, 0)"""
    return x.apply(lambda v: max(v, 0.0), lambda v, _: 1.0 if v > 0 else 0.0)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return x.apply(math.tanh, lambda _, y: 1 - y * y)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), without overflow."""
    return x.apply(
        lambda v: 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v)), lambda _, y: y * (1 - y)
    )


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), as in the U-Net."""
    return x * sigmoid(x)


def log_softmax(x: Tensor) -> Tensor:
    """Log-probabilities for each row of logits x (n, classes)."""
    n, classes = x.shape
    shifted = x - Tensor([max(x.values[i : i + classes]) for i in range(0, n * classes, classes)], (n, 1))
    return shifted - shifted.exp().sum(1).log().reshape(n, 1)


def cross_entropy(x: Tensor, classes: Sequence[int]) -> Tensor:
    """The mean negative log-probability that logits x (n, classes) give to the true class of each row."""
    n, count = x.shape
    if len(classes) != n or any(not 0 <= c < count for c in classes):
        raise ValueError(f"classes: expected {n} integers from 0 to {count - 1}")
    return -log_softmax(x).gather([i * count + c for i, c in enumerate(classes)], (n,)).mean()


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of two tensors of one shape."""
    if x.shape != y.shape:
        raise ValueError(f"got {as_text(x.shape)} and {as_text(y.shape)}, expected one shape")
    difference = x - y
    return (difference * difference).mean()
