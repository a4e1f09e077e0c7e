"""A stand-in network: small, random, smooth and nonlinear in x and t, so that a run tests everything but taste."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradina.diffusion.conditioning import Cond


@pytest.fixture(scope="session")
def network() -> Callable[..., Tensor]:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    into = torch.randn((8, 4, 3, 3), generator=g) / 6
    time = torch.randn((8, 4), generator=g) / 2
    out = torch.randn((4, 8, 3, 3), generator=g) / 5

    @torch.no_grad()
    def says(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        clock = t[:, None].to(x) * torch.tensor([1 / 1000, 1 / 300, 1 / 1000, 1 / 300])
        clock = torch.cat([clock[:, :2].sin(), clock[:, 2:].cos()], 1) @ time.T
        hidden = torch.tanh(torch.nn.functional.conv2d(x, into, padding=1) + clock[:, :, None, None])
        shift = 0 if cond is None else cond.states
        return 0.5 * x + torch.nn.functional.conv2d(hidden, out, padding=1) + shift

    return says
