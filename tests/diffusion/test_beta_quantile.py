"""Quantiles of the beta distribution, against scipy."""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch

from gradina.diffusion.beta_quantile import beta_quantile


def test_beta_quantile_is_that_of_scipy() -> None:
    p = torch.cat([torch.linspace(0, 1, 201, dtype=torch.float64), torch.tensor([1e-9, 1e-4, 1 - 1e-6]).double()])
    expected = scipy.stats.beta.ppf(p.numpy(), 0.6, 0.6)
    np.testing.assert_allclose(beta_quantile(p), expected, rtol=1e-12, atol=1e-15)
