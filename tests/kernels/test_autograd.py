"""Each backward in C against autograd in double precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels import autograd
from gradina.kernels import dispatch as dispatch_module
from gradina.kernels.autograd import BlockwiseAttention, Conv3x3Function, GEGLUFunction, GroupNormFunction
from gradina.kernels.bindings import GEGLUKernel, SoftmaxKernel, native
from gradina.kernels.dispatch import dispatch
from gradina.kernels.operations import matmul_attention
from gradina.nn.conv import Conv2d
from gradina.nn.ops import geglu

DTYPES = (torch.float32, torch.bfloat16)
NEAR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the norm of the exact result
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))

Function = Callable[..., Tensor]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def grads(function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradient of each input for a random gradient of the output."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    back = drawn(*out.shape, dtype=torch.float64, seed=9).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, back)]


def same(function: Function, exact: Function, *inputs: Tensor, tolerance: float) -> None:
    ours, theirs = grads(function, inputs), grads(exact, [x.double() for x in inputs])
    for i, (got, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert got.shape == expected.shape
        far = (got.double() - expected).norm() / expected.norm()
        assert far <= tolerance, f"gradient {i - 1}: {far:.1e}"


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def is_native(dtype: torch.dtype) -> bool:
    return native(GEGLUKernel, dtype) is not None


def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return matmul_attention(native(SoftmaxKernel, q.dtype), q, k, v)


@dtypes
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 3, 1), (3, 40, 5, 7), (2, 24, 19, 31), (4, 96, 16, 16)])
def test_group_norm(shape: tuple[int, ...], shifted: bool, silu: bool, dtype: torch.dtype) -> None:
    norm, b, c = nn.GroupNorm(4, shape[1]), *shape[:2]
    x = 1 + 2 * drawn(*shape, dtype=dtype)
    inputs = [x, 1 + drawn(c), drawn(c, seed=1), *([drawn(b, c, dtype=dtype)] if shifted else [])]

    def ours(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        del norm.weight, norm.bias
        norm.weight, norm.bias = weight, bias  # type: ignore[assignment]
        kernel = dispatch("group_norm", last(x))
        if kernel is None:
            pytest.skip("needs a C compiler and a CPU with AVX-512")
        out = kernel(norm, last(x), shift, silu)
        assert isinstance(out.grad_fn, GroupNormFunction._backward_cls)
        return out

    def exact(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        h = F.group_norm(x if shift is None else x + shift[:, :, None, None], 4, weight, bias, norm.eps)
        return F.silu(h) if silu else h

    same(ours, exact, *inputs, tolerance=NEAR[dtype])


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 2 * 37), (4, 2 * 64)])
def test_geglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def exact(both: Tensor) -> Tensor:
        h, gate = both.chunk(2, dim=-1)
        return h * F.gelu(gate)

    same(geglu, exact, 3 * drawn(*shape, dtype=dtype), tolerance=NEAR[dtype])
    assert not is_native(dtype) or isinstance(
        geglu(drawn(*shape, dtype=dtype).requires_grad_()).grad_fn, GEGLUFunction._backward_cls
    )


@dtypes
def test_geglu_of_large_gates(dtype: torch.dtype) -> None:
    gates = torch.tensor([-1e4, -30.0, -13.2, 0.0, 13.2, 30.0, 1e4], dtype=dtype)
    both = torch.cat([torch.full_like(gates, 2.0), gates]).requires_grad_()
    (grad_both,) = torch.autograd.grad(geglu(both).sum(), both)
    h, gate = grad_both.chunk(2)
    assert torch.allclose(h, gates.clamp(min=0), rtol=0, atol=1e-30)
    assert torch.allclose(gate, torch.tensor([0.0, 0, 0, 1, 2, 2, 2], dtype=dtype), atol=1e-6)


@dtypes
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 4), (5, 24, 32), (64, 64, 32), (33, 77, 40), (16, 7, 8)])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_matmul_attention(n: int, m: int, d: int, scale: float, dtype: torch.dtype) -> None:
    q, k, v = (drawn(2, 3, size, d, dtype=dtype, seed=i) for i, size in enumerate((n, m, m)))
    many = 1 if dtype == torch.float32 else 4  # scores, too, are rounded
    exact = F.scaled_dot_product_attention
    ours, theirs = grads(matmul, (q * scale, k, v)), grads(exact, [x.double() for x in (q * scale, k, v)])
    for got, expected in zip(ours, theirs, strict=True):
        tolerance = many * NEAR[dtype] * scale * max(expected.norm().item(), expected.numel() ** 0.5 / 10)
        assert (got.double() - expected).norm() <= tolerance


def test_softmax_of_far_scores_is_zero_with_zero_gradient() -> None:
    q, k = torch.tensor([[[[1.0]]]]), torch.tensor([[[[0.0], [-80.0], [-1e4]]]])
    v = torch.eye(3)[None, None].requires_grad_()
    q.requires_grad_()
    out = matmul(q, k, v)
    assert torch.allclose(out, torch.tensor([1.0, 0, 0]), rtol=0, atol=1e-30)
    out.sum().backward()
    assert q.grad is not None
    assert abs(q.grad.item()) < 1e-30


@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 5, 17, 23])
def test_softmax_and_geglu_propagate_nan(at: int, bad: float, dtype: torch.dtype) -> None:
    """Or a run that has diverged would go on. Other rows are as they were."""
    x = drawn(3, 24, dtype=dtype)
    x[1, at] = bad
    q, one = x[None, None].requires_grad_(), torch.eye(24, dtype=dtype)[None, None]
    probs = matmul(q, one, one)[0, 0]
    assert probs.isnan().all(-1).tolist() == [False, True, False]
    (grad_output,) = torch.autograd.grad(probs.sum(), q)
    assert grad_output[0, 0].isnan().any(-1).tolist() == [False, True, False]
    both = drawn(3, 48, dtype=dtype)
    both[1, 24 + at] = float("nan")
    grad_both = grads(geglu, [both])
    assert all(one.isnan().any(-1).tolist() == [False, True, False] for one in grad_both)


@dtypes
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "shape"),
    [(3, (2, 16, 1, 1)), (3, (3, 17, 5, 3)), (3, (2, 32, 8, 8)), (3, (2, 19, 11, 13)), (1, (2, 33, 6, 5))],
)
def test_conv2d(
    size: int, shape: tuple[int, ...], bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "MIN_CONV_WORK", 0)
    layer = Conv2d(shape[1], 20, size, padding=size // 2, bias=bias)
    few = dtype == torch.float32 or shape[2] * shape[3] <= 64
    inputs = [drawn(*shape), drawn(20, shape[1], size, size, seed=1), *([drawn(20)] if bias else [])]

    def ours(x: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        del layer.weight, layer.bias
        layer.weight, layer.bias = last(weight), shift
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(last(x).to(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert isinstance(out.grad_fn, Conv3x3Function._backward_cls) == (size == 3 and few and is_native(dtype))
        return out.float()

    def exact(x: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, shift, padding=size // 2)

    same(ours, exact, *inputs, tolerance=NEAR[dtype])


def test_gradients_of_fixed_parameters_are_not_computed() -> None:
    """Of a LoRA's base only that of the input; of a first layer only those of its parameters."""
    layer, x = Conv2d(16, 16, 3, padding=1).bfloat16(), last(drawn(1, 16, 4, 4, dtype=torch.bfloat16))
    layer.requires_grad_(False)
    (grad_x,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    layer.requires_grad_(True)
    grad_weight, grad_bias = torch.autograd.grad(layer(x.detach()).sum(), [layer.weight, layer.bias])
    assert grad_x.shape == x.shape
    assert grad_weight.shape == (16, 16, 3, 3)
    assert grad_bias.tolist() == [16.0] * 16


BLOCKS = [(1, 2, 300, 300, 16), (2, 1, 1000, 77, 40), (2, 3, 77, 1000, 8), (1, 8, 513, 511, 20)]


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blockwise_attention_and_its_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and all gradients, with several blocks that do not divide the rows evenly."""
    monkeypatch.setattr(autograd, "SCORES_AT_ONCE", 100 * shape[3])
    b, heads, n, m, d = shape
    key = torch.Generator().manual_seed(0)
    exact = [torch.randn(b, heads, rows, d, generator=key, dtype=torch.float64) for rows in (n, m, m)]
    grad_output = torch.randn(b, heads, n, d, generator=key, dtype=torch.float64)
    blockwise = partial(BlockwiseAttention.apply, F.scaled_dot_product_attention, native(SoftmaxKernel, dtype))
    found = []
    for attend, kind in ((partial(matmul_attention, None), torch.float64), (blockwise, dtype)):
        inputs = [x.to(kind).clone().requires_grad_() for x in exact]
        out = attend(*inputs)
        out.backward(grad_output.to(kind))
        found.append([out.detach(), *(x.grad for x in inputs)])
    for expected, got in zip(*found, strict=True):
        assert got is not None
        assert got.dtype == dtype
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert error < (1e-12 if dtype == torch.float64 else 0.03)


def test_gradients_of_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_native(torch.float32):
        pytest.skip("needs the kernels")
    x = drawn(3, 4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"gradients of gradients .* GRADINA_NATIVE=0"):
        torch.autograd.grad(geglu(x).sum(), x, create_graph=True)
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    (grad_output,) = torch.autograd.grad(geglu(x).sum(), x, create_graph=True)
    assert grad_output.requires_grad


@pytest.mark.parametrize(
    ("n", "m", "causal"), [(1, 1, False), (1, 1, True), (16, 77, False), (128, 128, False), (128, 128, True)]
)
def test_matmul_attention_has_the_gradients_of_pytorchs(n: int, m: int, causal: bool) -> None:
    grads = []
    matmul = partial(matmul_attention, native(SoftmaxKernel, torch.float32), causal=causal)
    for attend in (matmul, partial(F.scaled_dot_product_attention, is_causal=causal)):
        q, k, v = (torch.randn(2, 3, size, 8, generator=torch.Generator().manual_seed(size)) for size in (n, m, m))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        (attend(*inputs) ** 2).sum().backward()
        grads.append([x.grad for x in inputs])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
