"""Layers: tensors that learn, and what is done with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product as places

from gradina.foundations.random import Random
from gradina.foundations.tensor import NOWHERE, Tensor


class Linear:
    """x (n, inputs) -> (n, outputs): x · weight + bias, with weights drawn as PyTorch draws them."""

    def __init__(self, inputs: int, outputs: int, random: Random) -> None:
        bound = 1 / math.sqrt(inputs)
        self.weight = drawn((inputs, outputs), bound, random)
        self.bias = drawn((outputs,), bound, random)
        self.parameters = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Conv2d:
    """x (n, channels, h, w) -> (n, outputs, h', w'): each place looks at a square around it, and all look alike."""

    def __init__(
        self, channels: int, outputs: int, kernel: int, random: Random, stride: int = 1, padding: int = 0
    ) -> None:
        inputs = channels * kernel * kernel
        self.channels, self.kernel, self.stride, self.padding = channels, kernel, stride, padding
        self.weight = drawn((inputs, outputs), 1 / math.sqrt(inputs), random)
        self.bias = drawn((outputs,), 1 / math.sqrt(inputs), random)
        self.parameters = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        if len(x.shape) != 4 or x.shape[1] != self.channels:
            raise ValueError(f"got {'x'.join(map(str, x.shape))}, expected n x {self.channels} x height x width")
        n, _, h, w = x.shape
        high, wide = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in (h, w))
        if high < 1 or wide < 1:
            raise ValueError(f"{h}x{w} is too small for a kernel of {self.kernel} with a margin of {self.padding}")
        index = _patches(x.shape, self.kernel, self.stride, self.padding)
        patches = x.gather(index, (n * high * wide, len(index) // (n * high * wide)))
        said = patches @ self.weight + self.bias
        return said.reshape(n, high, wide, self.bias.shape[0]).permute(0, 3, 1, 2)


@cache
def _patches(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> tuple[int, ...]:
    """Where each number of each patch lies; beyond the margins, nowhere."""
    n, channels, h, w = shape
    tops, lefts = (range(-padding, side + padding - kernel + 1, stride) for side in (h, w))
    found = []
    for one, top, left, c, down, across in places(range(n), tops, lefts, range(channels), range(kernel), range(kernel)):
        y, x = top + down, left + across
        inside = 0 <= y < h and 0 <= x < w
        found.append(((one * channels + c) * h + y) * w + x if inside else NOWHERE)
    return tuple(found)


class LayerNorm:
    """x (n, width) -> the same, each row with mean 0 and deviation 1, then scaled and moved as it learns."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        self.eps = eps
        self.weight, self.bias = (
            Tensor([1.0] * width, (width,), learns=True),
            Tensor([0.0] * width, (width,), learns=True),
        )
        self.parameters = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        return normalised(x, self.eps) * self.weight + self.bias


def normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each row of x (n, width) with mean 0 and deviation 1."""
    if len(x.shape) != 2:
        raise ValueError(f"got {'x'.join(map(str, x.shape))}, expected rows: n x width")
    apart = x - x.mean(1).reshape(x.shape[0], 1)
    variance = (apart * apart).mean(1).reshape(x.shape[0], 1)
    return apart * (variance + eps) ** -0.5


def drawn(shape: tuple[int, ...], bound: float, random: Random) -> Tensor:
    """Numbers that learn, drawn evenly from -bound to bound."""
    return Tensor([random.uniform(-bound, bound) for _ in range(math.prod(shape))], shape, learns=True)


def relu(x: Tensor) -> Tensor:
    """What is above 0."""
    return x.apply(lambda v: max(v, 0.0), lambda v, _: 1.0 if v > 0 else 0.0)


def tanh(x: Tensor) -> Tensor:
    """Between -1 and 1."""
    return x.apply(math.tanh, lambda _, y: 1 - y * y)


def sigmoid(x: Tensor) -> Tensor:
    """Between 0 and 1."""
    return x.apply(
        lambda v: 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v)), lambda _, y: y * (1 - y)
    )


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), as in the U-Net."""
    return x * sigmoid(x)


def log_softmax(x: Tensor) -> Tensor:
    """Logarithms of probabilities for each row of x (n, classes)."""
    n, classes = x.shape
    largest = Tensor([max(x.values[i : i + classes]) for i in range(0, n * classes, classes)], (n, 1))
    apart = x - largest
    return apart - apart.exp().sum(1).log().reshape(n, 1)


def cross_entropy(x: Tensor, classes: Sequence[int]) -> Tensor:
    """How surprised x (n, classes) is by the true class of each row, on average."""
    n, count = x.shape
    if len(classes) != n or any(not 0 <= c < count for c in classes):
        raise ValueError(f"classes: expected {n} numbers from 0 to {count - 1}")
    return -log_softmax(x).gather([i * count + c for i, c in enumerate(classes)], (n,)).mean()


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape."""
    if x.shape != y.shape:
        raise ValueError(f"got {'x'.join(map(str, x.shape))} and {'x'.join(map(str, y.shape))}, expected one shape")
    apart = x - y
    return (apart * apart).mean()
