"""Optimizers: SGD with momentum, and Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradina.foundations.tensor import Tensor, Values


class SGD:
    """Gradient descent, with momentum or Nesterov's. Source: Sutskever et al. 2013, equations 1 to 4."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.parameters, self.lr = _checked(parameters, lr)
        self.momentum, self.nesterov = momentum, nesterov
        self._velocities: dict[int, Values] = {}

    def step(self) -> None:
        """Updates each parameter that has a gradient, and clears the gradient."""
        for p in self.parameters:
            if p.grad is None:
                continue
            update = p.grad
            if self.momentum:
                v = self._velocities.get(id(p))
                v = update if v is None else [self.momentum * s + g for s, g in zip(v, update, strict=True)]
                self._velocities[id(p)] = v
                update = [g + self.momentum * s for g, s in zip(update, v, strict=True)] if self.nesterov else v
            p.values = [x - self.lr * u for x, u in zip(p.values, update, strict=True)]
            p.grad = None


class Adam:
    """An adaptive step size for each element. Source: Kingma & Ba (1412.6980), algorithm 1."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters, self.lr = _checked(parameters, lr)
        self.betas, self.eps = betas, eps
        self.steps = 0
        self._moments: dict[int, tuple[Values, Values]] = {}

    def step(self) -> None:
        """Updates each parameter that has a gradient, and clears the gradient."""
        self.steps += 1
        b1, b2 = self.betas
        correction1, correction2 = 1 - b1**self.steps, 1 - b2**self.steps
        for p in self.parameters:
            if p.grad is None:
                continue
            zeros = [0.0] * len(p.values)
            m, v = self._moments.get(id(p), (zeros, zeros))
            m = [b1 * a + (1 - b1) * g for a, g in zip(m, p.grad, strict=True)]
            v = [b2 * a + (1 - b2) * g * g for a, g in zip(v, p.grad, strict=True)]
            self._moments[id(p)] = m, v
            update = (a / correction1 / (math.sqrt(b / correction2) + self.eps) for a, b in zip(m, v, strict=True))
            p.values = [x - self.lr * u for x, u in zip(p.values, update, strict=True)]
            p.grad = None


def _checked(parameters: Iterable[Tensor], lr: float) -> tuple[list[Tensor], float]:
    found = list(parameters)
    if not found or not all(p.requires_grad for p in found):
        raise ValueError("parameters: expected at least one tensor, and all with requires_grad")
    if not lr > 0:
        raise ValueError(f"lr: got {lr}, expected more than 0")
    return found, lr
