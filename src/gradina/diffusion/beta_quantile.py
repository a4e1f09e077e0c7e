"""Quantiles of the beta distribution, which the schedule of that name is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def beta_quantile(p: Tensor, a: float = 0.6) -> Tensor:
    """The quantile at p (n,) of the symmetric beta distribution Beta(a, a): bisection on its power series.

    B(x; a, a) = x^a * sum_k (1 - a)_k / (k! (a + k)) * x^k, for x <= 1/2; the other half is its mirror image.
    """
    low, high = torch.zeros_like(p), torch.full_like(p, 0.5)
    terms = p.new_tensor([math.gamma(1 - a + k) / math.gamma(1 - a) / math.factorial(k) / (a + k) for k in range(60)])
    whole = math.gamma(a) ** 2 / math.gamma(2 * a)
    for _ in range(64):
        x = (low + high) / 2
        below = x**a * (terms * x[:, None] ** torch.arange(60)).sum(1) < torch.minimum(p, 1 - p) * whole
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return torch.where(p <= 0.5, high * (p > 0), 1 - high * (p < 1))
