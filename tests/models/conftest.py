"""What the network tests share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 1e-4


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randomise(network: nn.Module) -> nn.Module:
    """Norms and biases too, which start as ones and zeros and would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator) if p.ndim < 2 else 0
    return network.eval()


@contextmanager
def _fast_init() -> Iterator[None]:
    """Networks of a billion parameters, made in seconds: one small normal draw, repeated, for every weight."""
    draw = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)) * 0.02

    def fill(tensor: Tensor, *_: object, **__: object) -> Tensor:
        with torch.no_grad():
            flat = tensor.view(-1)
            for start in range(0, len(flat), len(draw)):
                part = flat[start : start + len(draw)]
                part.copy_(draw[: len(part)])
        return tensor

    names = ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_")
    with patch.multiple("torch.nn.init", **dict.fromkeys(names, fill)):
        yield


@pytest.fixture
def fast_init() -> Callable[[], AbstractContextManager[None]]:
    return _fast_init


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
