"""Attention in C is PyTorch's attention, on every shape; and where it cannot be had, nothing is missed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.nn import native
from gradina.nn.attention import attention
from gradina.nn.native import own_attention

TIMES = {torch.float32: 4.0, torch.bfloat16: 1.5}  # the error of PyTorch's way
DTYPES = tuple(TIMES)
SHAPES = (  # batch, heads, queries, keys, width of a head
    (1, 1, 1, 1, 8), (1, 1, 1, 4096, 64), (2, 3, 77, 77, 64), (1, 2, 49, 16, 40), (1, 2, 130, 257, 33),
    (2, 2, 256, 256, 160), (1, 2, 100, 333, 80), (1, 1, 95, 513, 512), (3, 1, 48, 511, 1), (1, 8, 1024, 77, 80),
    (1, 1, 4096, 4096, 40),
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    own_attention.cache_clear()
    yield
    own_attention.cache_clear()


def own(dtype: torch.dtype) -> native.Attend:
    found = own_attention(dtype)
    if found is None:
        pytest.skip("needs a C compiler and a processor with AVX-512")
    return found


def given(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    """q, k and v as a layer has them: heads behind the tokens in memory."""
    b, heads, n, m, d = shape
    key = torch.Generator().manual_seed(sum(shape))
    return tuple((scale * torch.randn(b, x, heads, d, generator=key)).to(dtype).transpose(1, 2) for x in (n, m, m))


def error(got: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Root mean square, against 64 bits."""
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    return (got.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_it_is_as_exact_as_pytorch(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> None:
    q, k, v = given(shape, dtype, scale)
    got = own(dtype)(q, k, v)
    assert got.shape == q.shape
    assert got.dtype == dtype
    theirs = error(F.scaled_dot_product_attention(q, k, v), q, k, v)
    assert error(got, q, k, v) <= TIMES[dtype] * theirs + torch.finfo(dtype).eps * scale / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_will_do(dtype: torch.dtype) -> None:
    q, k, v = given((2, 3, 50, 70, 24), dtype)
    attend = own(dtype)
    expected = attend(q, k, v)
    assert torch.equal(attend(q.contiguous(), k.contiguous(), v.contiguous()), expected)
    assert torch.equal(attend(q.mT.contiguous().mT, k, v.mT.contiguous().mT), expected)
    one = k[:1].expand(2, -1, -1, -1)
    assert torch.equal(attend(q, one, v), attend(q, one.contiguous(), v))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_batches_do_not_matter(dtype: torch.dtype) -> None:
    q, k, v = given((2, 2, 300, 300, 40), dtype)
    attend, threads = own(dtype), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attend(q, k, v)
        torch.set_num_threads(3)
        assert torch.equal(attend(q, k, v), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(attend(q[1:], k[1:], v[1:]), alone[1:])


def test_numbers_that_are_none_stay_so() -> None:
    q, k, v = given((1, 1, 64, 64, 16), torch.float32)
    v[0, 0, 3, 5] = float("nan")
    got = own(torch.float32)(q, k, v)
    assert got[0, 0, :, 5].isnan().all()
    assert not got[0, 0, :, :5].isnan().any()


def test_long_sequences_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("gradina.nn.attention.own_attention", lambda dtype: asked.append(dtype))
    long, short = given((1, 1, 1024, 1024, 40), torch.float32), given((1, 1, 64, 64, 40), torch.float32)
    with torch.no_grad():
        attention(*short)
        attention(*long, causal=True)
        assert asked == []
        attention(*long)
        assert asked == [torch.float32]
    attention(*(x.requires_grad_() for x in long)).sum().backward()  # learning, on the way there alone
    assert asked == [torch.float32, torch.float32]
    assert all(x.grad is not None for x in long)


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(torch.float32)
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    own_attention.cache_clear()
    assert own_attention(torch.float32) is not None
    assert [p.suffix for p in (tmp_path / "native").iterdir()] == [".so"]
    own_attention.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert own_attention(torch.float32) is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_nothing_is_missed(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    assert own_attention(torch.float32) is None
    assert not list(tmp_path.rglob("*.so"))
    q, k, v = given((1, 1, 1024, 1024, 40), torch.float32)
    with torch.no_grad():
        assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_it_can_be_switched_off_and_knows_its_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_attention(torch.float16) is None
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    assert own_attention(torch.float32) is None
