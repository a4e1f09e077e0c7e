"""The convolutional blocks against their formulas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from gradina.nn.conv import Downsample, ResBlock, Upsample


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("width", "out"), [(8, 8), (8, 16)])
@pytest.mark.parametrize("timed", [False, True])
def test_residual_block(width: int, out: int, timed: bool) -> None:
    block = ResBlock(width, out, time_width=12 if timed else None, groups=4)
    x, time = torch.randn(2, width, 6, 5), torch.randn(2, 12)
    h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias)))
    if timed:
        h = h + block.time(F.silu(time))[..., None, None]
    h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias)))
    assert (block.skip is None) == (width == out)
    assert torch.allclose(block(x, time), h + (x if width == out else block.skip(x)), atol=1e-6)
    assert torch.equal(block(x), block(x, None))


def test_downsampling_pads_as_its_network_does() -> None:
    x = torch.randn(1, 4, 6, 8)
    both, one = Downsample(4), Downsample(4, one_sided=True)
    assert both(x).shape == one(x).shape == (1, 4, 3, 4)
    one.load_state_dict(both.state_dict())
    padded = F.pad(x, (0, 1, 0, 1))
    assert torch.allclose(one(x), F.conv2d(padded, one.conv.weight, one.conv.bias, stride=2))
    assert not torch.allclose(one(x), both(x))


def test_upsampling_doubles_or_upsample_to_a_size() -> None:
    upsample = Upsample(4)
    x = torch.randn(1, 4, 3, 5)
    assert torch.allclose(upsample(x), upsample.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), atol=1e-6)
    assert upsample(x, size=(7, 9)).shape == (1, 4, 7, 9)


def test_every_parameter_of_a_block_gets_its_gradient() -> None:
    torch.manual_seed(0)
    block, x = ResBlock(4, 8, groups=2), torch.randn(1, 4, 6, 6)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    with torch.no_grad():
        assert torch.equal(block(x), block(x)), "the input stays as it is"
