"""Memory that is used again changes no number, and is left alone where something learns."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.models.unet import GEGLU
from gradina.nn.conv import ResBlock
from gradina.nn.memory import AT_ONCE, added, chunked_over_tokens, silu


def pair() -> tuple[Tensor, Tensor]:
    key = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, generator=key), torch.randn(2, 3, 4, generator=key)


def test_the_first_is_overwritten_where_nothing_learns() -> None:
    h, x = pair()
    expected = h + x
    assert torch.equal(added(h, x), expected)
    assert torch.equal(h, pair()[0]), "something may learn"
    with torch.no_grad():
        got = added(h, x)
    assert torch.equal(got, expected)
    assert got.data_ptr() == h.data_ptr()


@torch.no_grad()
def test_no_digits_are_lost() -> None:
    h, x = pair()
    got = added(h.bfloat16(), x)
    assert got.dtype == torch.float32
    assert torch.equal(got, h.bfloat16() + x)


def test_activation() -> None:
    h, _ = pair()
    expected = F.silu(h)
    assert torch.equal(silu(h), expected)
    with torch.no_grad():
        assert silu(h).data_ptr() == h.data_ptr()
    assert torch.equal(h, expected)


def test_what_learns_gets_its_gradients() -> None:
    torch.manual_seed(0)
    block, x = ResBlock(4, 8, groups=2), torch.randn(1, 4, 6, 6)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    with torch.no_grad():
        assert torch.equal(block(x), block(x)), "what comes in stays as it is"


WIDTH, ROWS = 8, AT_ONCE // (8 * 4)  # of single precision


@pytest.mark.parametrize("count", [ROWS // 2, ROWS // 2 + 1, ROWS + 77])
@torch.no_grad()
def test_row_by_row_is_all_at_once(count: int) -> None:
    torch.manual_seed(0)
    layer, x = GEGLU(WIDTH), torch.randn(2, count, WIDTH)
    h, gate = layer.proj_in(x).chunk(2, -1)
    plain = layer.proj_out(h * F.gelu(gate)) + x
    assert torch.allclose(layer(x, x), plain, atol=1e-6)
    assert torch.allclose(layer(x, x.mT.contiguous().mT), plain, atol=1e-6), "in any layout"


def test_rows_are_not_parted_where_something_learns() -> None:
    seen: list[int] = []
    layer = nn.Bilinear(WIDTH, WIDTH, WIDTH)
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0].numel() // WIDTH))
    x = torch.randn(1, ROWS + 1, WIDTH)
    chunked_over_tokens(layer, x, x).sum().backward()
    with torch.no_grad():
        chunked_over_tokens(layer, x, x)
    assert seen == [ROWS + 1, ROWS, 1]


HELD = """
import sys, torch
from gradina.nn.memory import trim_heap, trim_threshold
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
def maps():
    for _ in range(3):
        both = [(torch.ones(5_000_000), torch.ones(10_000)) for _ in range(10)]
        kept = [small for large, small in both]
        both.clear()
    return kept
torch.ones(100), trim_threshold() if "trim_threshold" in sys.argv else None
first = held()
kept = maps()
trim_heap() if "trim_heap" in sys.argv else None
print(held() - first)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of GNU's C library")
@pytest.mark.parametrize("how", ["trim_threshold", "trim_heap"])
def test_freed_memory_returns_to_the_system(how: str) -> None:
    """Maps of 20 MB come and go, small ones stay."""
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True)
    assert float(done.stdout) < 15, (done.stdout, done.stderr)
