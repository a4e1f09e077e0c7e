"""Which kernel an operation takes: by dtype, phase, layout, CPU and size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from gradina.kernels import build
from gradina.kernels.autograd import BlockwiseAttention, Conv3x3Function
from gradina.kernels.bindings import GEGLUKernel, SoftmaxKernel, native
from gradina.kernels.dispatch import (
    INFERENCE,
    LAST,
    TABLE,
    Row,
    available,
    dispatch,
    heads,
    is_conv3x3,
    kernels_for,
    phase,
)
from gradina.kernels.gemm import Conv3x3Kernel
from gradina.kernels.operations import matmul_attention
from gradina.nn.conv import Conv2d
from gradina.nn.ops import attention


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def test_phases() -> None:
    x = torch.zeros(2)
    assert phase(x) == "frozen"
    assert phase(x, x.clone().requires_grad_()) == "training"
    assert phase(x.clone().requires_grad_()) == "training"
    with torch.no_grad():
        assert phase(x) == "inference"
    assert phase(x.to("meta")) is None
    with FakeTensorMode():
        assert phase(torch.zeros(2)) == "training"
        with torch.no_grad():
            assert phase(torch.zeros(2)) is None


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_traced_operations_are_pytorchs() -> None:
    seen: list[str | None] = []

    def traced(x: Tensor) -> Tensor:
        seen.append(phase(x))
        return x + 1

    with torch.no_grad():
        torch.jit.trace(traced, torch.zeros(2), check_trace=False)
    assert seen == [None]


def test_unknown_dtypes_have_no_kernel() -> None:
    with torch.no_grad():
        assert dispatch("geglu", torch.zeros(2, 4, dtype=torch.float16)) is None
        assert dispatch("group_norm", torch.zeros(1, 4, 2, 2)) is None, "not channels-last"


def test_attention_of_few_queries_wide_heads_or_little_work_is_pytorchs() -> None:
    fits = heads(queries=64, width=16, work=64 * 64 * 8)
    for n, m, d, fast in ((64, 64, 8, True), (63, 99, 8, False), (64, 63, 8, False), (64, 64, 17, False)):
        assert fits(torch.empty(1, 2, n, d), torch.empty(1, 2, m, d)) == fast, (n, m, d)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The table is read anew."""
    kernels_for.cache_clear()
    yield
    kernels_for.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_long_attention_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q.dtype)
        return F.scaled_dot_product_attention(q, k, v)

    row = Row("attention", (torch.float32,), INFERENCE, None, None, lambda build: kernel, heads(1, 256))
    others = (other for other in TABLE if (other.operation, other.phases) != ("attention", INFERENCE))
    monkeypatch.setattr("gradina.kernels.dispatch.TABLE", (row, *others))
    long, short = (torch.randn(3, 1, 1, n, 40).unbind() for n in (1024, 64))
    with torch.no_grad():
        attention(*short)
        attention(*long, causal=True)
        assert seen == []
        attention(*long)
        assert seen == [torch.float32]
    attention(*(x.clone().requires_grad_() for x in long)).sum().backward()  # in its forward alone
    assert seen == [torch.float32, torch.float32]


@pytest.mark.usefixtures("fresh")
def test_long_attention_is_trained_blockwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    apply = BlockwiseAttention.apply
    monkeypatch.setattr(BlockwiseAttention, "apply", lambda *given: (seen.append(given[2].shape[-2]), apply(*given))[1])
    for n, dtype, causal in (
        (300, torch.bfloat16, False),
        (200, torch.bfloat16, False),
        (300, torch.bfloat16, True),
        (300, torch.float32, False),
        (200, torch.float32, False),
    ):
        q = torch.randn(1, 2, n, 16, dtype=dtype, requires_grad=True)
        attention(q, q, q, causal)
    with torch.no_grad():
        attention(*(torch.randn(3, 1, 2, 300, 16).bfloat16()))
    assert seen == [300, 300]


def test_short_attention_in_bf16_is_trained_as_products() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.bfloat16) for _ in range(3))
    exact = matmul_attention(None, q.double(), k.double(), v.double())
    for causal in (False, True):
        softmax = None if causal else native(SoftmaxKernel, torch.bfloat16)
        assert torch.equal(attention(q, k, v, causal), matmul_attention(softmax, q, k, v, causal))
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert (attention(q, k, v).double() - exact).abs().max() < 0.03


FEATURES = ("avx512f avx512_bf16 amx_bf16", "avx512f avx512_bf16", "avx512f", "")
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("operation", "layout", "dtypes"),
    [
        ("conv2d", "conv3x3", [{FP32, BF16}, {FP32, BF16}, {FP32}, set()]),
        ("linear", "linear", [{BF16}, set(), set(), set()]),
        ("linear_geglu", "geglu", [{FP32, BF16}, {FP32}, {FP32}, set()]),
        ("group_norm", LAST, [{FP32, BF16}, {FP32, BF16}, {FP32}, set()]),
        ("linear", "onednn_linear", [{FP32, BF16}] * 4),
    ],
)
def test_the_cpu_decides_the_kernels(
    operation: str, layout: str, dtypes: list[set[torch.dtype]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if native(GEGLUKernel, FP32) is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    here = build.cpu_features()
    for features, expected in zip(FEATURES, dtypes, strict=True):
        if set(features.split()) <= here:
            monkeypatch.setattr(build, "cpu_features", lambda features=features: frozenset(features.split()))
            assert {dtype for dtype in (FP32, BF16, torch.float16) if available(operation, dtype, layout)} == expected


dtypes = pytest.mark.parametrize("dtype", [FP32, BF16], ids=("fp32", "bf16"))


@dtypes
def test_small_convolutions_in_fp32_are_trained_by_pytorch(dtype: torch.dtype) -> None:
    out = Conv2d(16, 16, 3, padding=1).to(dtype)(last(torch.randn(1, 16, 4, 4).to(dtype)))
    by_kernel = dtype == torch.bfloat16 and native(Conv3x3Kernel, dtype) is not None
    assert isinstance(out.grad_fn, Conv3x3Function._backward_cls) == by_kernel


def test_other_convolutions_are_pytorchs() -> None:
    x = last(torch.randn(1, 4, 6, 6).bfloat16()).requires_grad_()
    for how in (
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect", "padding": 1},
        {"padding": 2},
    ):
        layer = Conv2d(4, 4, 3, **how).bfloat16()
        plain = nn.Conv2d(4, 4, 3, **how).bfloat16()
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), plain(x)), how


def test_which_convolutions_are_3x3() -> None:
    assert is_conv3x3(nn.Conv2d(16, 16, 3, padding=1))
    others = (
        nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 3, padding=1, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1),
        nn.Conv2d(16, 16, 5, padding=1), nn.Conv2d(16, 16, 3, padding=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
    )  # fmt: skip
    assert not any(map(is_conv3x3, others))
