"""What is computed in C is what PyTorch computes, on every shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels import build
from gradina.kernels.bindings import (
    AttentionKernel,
    BFloat16Kernel,
    GEGLUKernel,
    GroupNormKernel,
    LayerNormKernel,
    loaded,
    native,
)
from gradina.kernels.build import BUILDS, Build

TIMES = {torch.float32: 4.0, torch.bfloat16: 1.5}  # the error of PyTorch's attention
ATTENTION_BUILDS = {"tiles": BUILDS[0], "pairs": BUILDS[1], "float": BUILDS[3]}
attention_builds = pytest.mark.parametrize("way", ATTENTION_BUILDS.values(), ids=ATTENTION_BUILDS)
SHAPES = (  # batch, heads, queries, keys, width of a head
    (1, 1, 1, 1, 8), (1, 1, 1, 4096, 64), (2, 3, 77, 77, 64), (1, 2, 49, 16, 40), (1, 2, 130, 257, 33),
    (2, 2, 256, 256, 160), (1, 2, 100, 333, 80), (1, 1, 95, 513, 512), (3, 1, 48, 511, 1), (1, 8, 1024, 77, 80),
    (1, 1, 4096, 4096, 40),
)  # fmt: skip


def attention_kernel(way: Build) -> AttentionKernel:
    found = loaded(AttentionKernel, way) if way.feature in build.cpu_features() else None
    if found is None:
        pytest.skip(f"needs a C compiler and a CPU with {way.feature}")
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


@attention_builds
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_attention_is_as_exact_as_pytorchs(shape: tuple[int, ...], way: Build, scale: float) -> None:
    dtype = way.dtype
    q, k, v = given(shape, dtype, scale)
    got = attention_kernel(way)(q, k, v)
    assert got.shape == q.shape
    assert got.dtype == dtype
    theirs = error(F.scaled_dot_product_attention(q, k, v), q, k, v)
    assert error(got, q, k, v) <= TIMES[dtype] * theirs + torch.finfo(dtype).eps * scale / 2


@attention_builds
def test_attention_of_any_layout(way: Build) -> None:
    q, k, v = given((2, 3, 50, 70, 24), way.dtype)
    attend = attention_kernel(way)
    expected = attend(q, k, v)
    assert torch.equal(attend(q.contiguous(), k.contiguous(), v.contiguous()), expected)
    assert torch.equal(attend(q.mT.contiguous().mT, k, v.mT.contiguous().mT), expected)
    one = k[:1].expand(2, -1, -1, -1)
    assert torch.equal(attend(q, one, v), attend(q, one.contiguous(), v))


@attention_builds
def test_attention_is_independent_of_threads_and_batches(way: Build) -> None:
    q, k, v = given((2, 2, 300, 300, 40), way.dtype)
    attend, threads = attention_kernel(way), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attend(q, k, v)
        torch.set_num_threads(3)
        assert torch.equal(attend(q, k, v), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(attend(q[1:], k[1:], v[1:]), alone[1:])


@attention_builds
def test_attention_propagates_nan_in_values(way: Build) -> None:
    q, k, v = given((1, 1, 64, 64, 16), way.dtype)
    v[0, 0, 3, 5] = float("nan")
    got = attention_kernel(way)(q, k, v)
    assert got[0, 0, :, 5].isnan().all()
    assert not got[0, 0, :, :5].isnan().any()


@attention_builds
def test_attention_of_large_scores_and_values(way: Build) -> None:
    """Some queries far out, keys near to what is allowed, values that leave no room for sums: all as exact."""
    q, k, v = given((1, 2, 200, 300, 40), way.dtype)
    attend, eps = attention_kernel(way), torch.finfo(way.dtype).eps
    far = q.clone()
    far[0, 0, 70:75] *= 300
    cases = [(far, k, v), (q, k, v * 1e37), (q, k, v * 0), (q * 0, k * 1e30, v)]
    cases += [(q * scale, k * scale, v) for scale in (3.0, 3.4, 3.8, 5.0)]
    for some in cases:
        exact = F.scaled_dot_product_attention(*(x.double() for x in some))
        got, theirs = attend(*some), F.scaled_dot_product_attention(*some)
        most = exact.abs().max().item()
        limit = TIMES[way.dtype] * (theirs.double() - exact).abs().max().item() + eps * most
        assert (got.double() - exact).abs().max().item() <= limit


@attention_builds
@pytest.mark.parametrize("which", [0, 1])
def test_attention_propagates_nan_in_queries_and_keys(way: Build, which: int) -> None:
    given_ = list(given((1, 1, 64, 80, 16), way.dtype))
    given_[which][0, 0, 3, 5] = float("nan")
    got = attention_kernel(way)(*given_)
    if which == 0:
        assert got[0, 0, 3].isnan().all()
        assert not got[0, 0, torch.arange(64) != 3].isnan().any()
    else:
        assert got.isnan().all()


LAST_BITS = {torch.float32: 2**-20, torch.bfloat16: 2**-8}  # a few of the last bits
dtypes = pytest.mark.parametrize("dtype", LAST_BITS, ids=str)


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 2 * 33), (2048, 2 * 64), (2, 7, 11, 2 * 16), (0, 8)])
@torch.no_grad()
def test_geglu_is_pytorchs_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    kernel = native(GEGLUKernel, dtype)
    if kernel is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    both = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    h, gate = both.double().chunk(2, dim=-1)
    expected, last = h * F.gelu(gate), LAST_BITS[dtype]
    for given in (both, both.mT.contiguous().mT):
        got = kernel(given)
        assert got.dtype == dtype
        assert got.shape == expected.shape
        assert ((got - expected).abs() <= last * (expected.abs() + h.abs() / 256) + 1e-30).all()


@dtypes
def test_geglu_of_large_gates_nan_and_infinity(dtype: torch.dtype) -> None:
    kernel = native(GEGLUKernel, dtype)
    if kernel is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    gate = torch.tensor([-1e30, -100.0, -15.0, 0.0, 15.0, 100.0, float("nan"), float("inf")]).to(dtype)
    got = kernel(torch.cat([torch.ones(8).to(dtype), gate]))
    assert got[:3].abs().max() < 1e-30
    assert got[3:6].tolist() == [0, 15, 100]
    assert got[6].isnan()
    assert got[7].isinf()


NORMS = {torch.float32: 1e-5, torch.bfloat16: 2**-8}  # of the largest number
norms = pytest.mark.parametrize("dtype", NORMS, ids=str)


def norm_and_map(
    dtype: torch.dtype, channels: int, groups: int, size: tuple[int, int]
) -> tuple[GroupNormKernel, nn.GroupNorm, Tensor, Tensor]:
    """The kernel and a norm; two channels-last maps far from 0, whose first pixels are farther; a shift of them."""
    kernel = native(GroupNormKernel, dtype)
    if kernel is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    key = torch.Generator().manual_seed(channels)
    norm = nn.GroupNorm(groups, channels, 1e-6).requires_grad_(False)
    norm.weight.copy_(torch.randn(channels, generator=key))
    norm.bias.copy_(torch.randn(channels, generator=key))
    x = 5 + 2 * torch.randn(2, channels, *size, generator=key)
    x[:, :, 0, 0] += 100
    shift = 3 * torch.randn(2, channels, generator=key)
    return kernel, norm.to(dtype), x.to(dtype, memory_format=torch.channels_last), shift.to(dtype)


@norms
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "size"),
    [(32, 8, (1, 1)), (32, 32, (3, 5)), (40, 4, (16, 17)), (7, 7, (9, 33)), (320, 32, (64, 64)), (130, 2, (2, 300))],
)
@torch.no_grad()
def test_group_norm_is_pytorchs_to_rounding(
    channels: int, groups: int, size: tuple[int, int], shifted: bool, silu: bool, dtype: torch.dtype
) -> None:
    kernel, norm, x, shift = norm_and_map(dtype, channels, groups, size)
    expected = x.double() + (shift.double()[:, :, None, None] if shifted else 0)
    expected = F.group_norm(expected, groups, norm.weight.double(), norm.bias.double(), norm.eps)
    expected = F.silu(expected) if silu else expected
    got = kernel(norm, x, shift if shifted else None, silu)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - expected).abs().max() <= NORMS[dtype] * expected.abs().max()


@norms
@torch.no_grad()
def test_group_norm_is_independent_of_threads_and_batches(dtype: torch.dtype) -> None:
    kernel, norm, x, _ = norm_and_map(dtype, 320, 32, (64, 64))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = kernel(norm, x, silu=True)
        torch.set_num_threads(3)
        assert torch.equal(kernel(norm, x, silu=True), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(kernel(norm, x[1:], silu=True), alone[1:])


@norms
@torch.no_grad()
def test_group_norm_of_large_biases_and_nan(dtype: torch.dtype) -> None:
    kernel, norm, x, _ = norm_and_map(dtype, 16, 2, (16, 16))
    norm.weight.fill_(1), norm.bias.copy_(torch.tensor([1e4, -1e4] * 8))
    x[1, 3, 2, 2] = float("nan")
    got = kernel(norm, x, silu=True)
    assert (got[0, ::2] > 9e3).all()
    assert (got[0, 1::2] == 0).all()
    assert got[1, :8].isnan().all()
    assert not got[1, 8:].isnan().any()


@norms
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 33), (2, 7, 320), (4, 1280), (0, 16)])
@torch.no_grad()
def test_layer_norm_is_pytorchs_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    kernel = native(LayerNormKernel, dtype)
    if kernel is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    key = torch.Generator().manual_seed(shape[-1])
    ours, theirs = nn.LayerNorm(shape[-1]).requires_grad_(False), nn.LayerNorm(shape[-1]).double()
    for x in (ours.weight, ours.bias):
        x.copy_(torch.randn(x.shape, generator=key))
    theirs.load_state_dict({name: x.to(dtype).double() for name, x in ours.state_dict().items()})
    ours, x = ours.to(dtype), (5 + 2 * torch.randn(shape, generator=key)).to(dtype)
    expected = theirs(x.double())
    for given in (x, x.mT.contiguous().mT):
        got = kernel(given, ours.weight, ours.bias, ours.eps)
        assert (got.dtype, got.shape) == (dtype, x.shape)
        assert ((got - expected).abs() <= NORMS[dtype] * (expected.abs() + 1)).all()


def test_bfloat16_is_rounded_as_pytorch_does() -> None:
    kernel = native(BFloat16Kernel, torch.bfloat16)
    if kernel is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    got, expected = kernel(every), every.bfloat16()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[~got.isnan()], expected[~got.isnan()])
