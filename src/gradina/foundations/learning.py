"""Optimizers: how parameters follow their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradina.foundations.tensor import Numbers, Tensor


class SGD:
    """Against the gradient; with momentum, along an average of gradients. Source: Sutskever et al. 2013, eq. 1-2."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.parameters, self.lr, self.momentum, self.nesterov = _learning(parameters), _rate(lr), momentum, nesterov
        self._speeds: dict[int, Numbers] = {}

    def step(self) -> None:
        """Moves each parameter, and forgets its gradient."""
        for p in self.parameters:
            if p.grad is None:
                continue
            way = p.grad
            if self.momentum:
                before = self._speeds.get(id(p))
                speed = way if before is None else [self.momentum * s + g for s, g in zip(before, way, strict=True)]
                self._speeds[id(p)] = speed
                way = [g + self.momentum * s for g, s in zip(way, speed, strict=True)] if self.nesterov else speed
            p.values = [x - self.lr * w for x, w in zip(p.values, way, strict=True)]
            p.grad = None


class Adam:
    """Each number at a pace of its own. Source: Kingma & Ba 1412.6980, algorithm 1."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters, self.lr, self.betas, self.eps = _learning(parameters), _rate(lr), betas, eps
        self.steps = 0
        self._means: dict[int, Numbers] = {}
        self._squares: dict[int, Numbers] = {}

    def step(self) -> None:
        """Moves each parameter, and forgets its gradient."""
        self.steps += 1
        slow, slower = self.betas
        first, second = 1 - slow**self.steps, 1 - slower**self.steps
        for p in self.parameters:
            if p.grad is None:
                continue
            none = [0.0] * len(p.values)
            mean = [slow * m + (1 - slow) * g for m, g in zip(self._means.get(id(p), none), p.grad, strict=True)]
            squares = self._squares.get(id(p), none)
            square = [slower * s + (1 - slower) * g * g for s, g in zip(squares, p.grad, strict=True)]
            self._means[id(p)], self._squares[id(p)] = mean, square
            moves = (m / first / (math.sqrt(s / second) + self.eps) for m, s in zip(mean, square, strict=True))
            p.values = [x - self.lr * move for x, move in zip(p.values, moves, strict=True)]
            p.grad = None


def _learning(parameters: Iterable[Tensor]) -> list[Tensor]:
    found = list(parameters)
    if not found or not all(p.learns for p in found):
        raise ValueError("parameters: expected tensors that learn, at least one")
    return found


def _rate(lr: float) -> float:
    if not lr > 0:
        raise ValueError(f"lr: got {lr}, expected more than 0")
    return lr
