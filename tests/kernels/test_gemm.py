"""Linear layers and 3x3 convolutions in C are exact but for rounding, and weights come back from their order."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.kernels import build
from gradina.kernels.build import BUILDS, Build
from gradina.kernels.gemm import Conv3x3Kernel, LinearKernel, conv3x3_weight, linear_weight

CONV_BUILDS = {"tiles": BUILDS[0], "pairs": BUILDS[1], "float": BUILDS[3]}
conv_builds = pytest.mark.parametrize("way", CONV_BUILDS.values(), ids=CONV_BUILDS)


def library(way: Build) -> ctypes.CDLL:
    """As it is compiled for a way, if this CPU has it."""
    found = build.library(way.flags) if way.feature in build.cpu_features() else None
    if found is None:
        pytest.skip(f"needs a C compiler and a CPU with {way.feature}")
    return found


def conv3x3_kernel(way: Build) -> Conv3x3Kernel:
    return Conv3x3Kernel(library(way), way.tiles)


def maps(
    dtype: torch.dtype, channels: int, out: int, size: tuple[int, int], batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with their channels last, weights of a 3x3 convolution, a bias."""
    key = torch.Generator().manual_seed(channels + out)
    x = torch.randn(batch, channels, *size, generator=key)
    weight = torch.randn(out, channels, 3, 3, generator=key) / (3 * channels**0.5)
    bias = torch.randn(out, generator=key)
    return x.to(dtype, memory_format=torch.channels_last), weight.to(dtype), bias.to(dtype)


@conv_builds
@pytest.mark.parametrize(
    ("channels", "out", "size"),
    [(16, 16, (1, 1)), (3, 5, (7, 9)), (33, 70, (4, 4)), (100, 130, (13, 6)), (64, 16, (1, 30)), (65, 33, (5, 2)),
     (320, 320, (64, 64)), (200, 48, (31, 33)), (1280, 640, (8, 8)), (700, 40, (48, 130)), (30, 30, (20, 50))],
)  # fmt: skip
@pytest.mark.parametrize("upsample", [1, 2])
@torch.no_grad()
def test_conv3x3_is_exact_but_for_rounding(
    channels: int, out: int, size: tuple[int, int], upsample: int, way: Build
) -> None:
    """The error is at most four times that of PyTorch's in single precision, and no more than its kernel in bf16."""
    kernel, dtype = conv3x3_kernel(way), way.dtype
    x, weight, bias = maps(dtype, channels, out, size)
    seen = x.repeat_interleave(upsample, 2).repeat_interleave(upsample, 3)
    residual = torch.randn(2, out, *seen.shape[2:], generator=torch.Generator().manual_seed(0)).to(dtype)
    ordered = kernel.reorder(weight)
    assert torch.equal(conv3x3_weight(ordered, out, channels), weight)
    for b, other in ((bias, None), (None, residual), (bias, residual)):
        more = 0 if other is None else other.double()
        exact = F.conv2d(seen.double(), weight.double(), None if b is None else b.double(), padding=1) + more
        theirs = F.conv2d(seen, weight, b, padding=1) + (0 if other is None else other)
        got = kernel(x, ordered, out, b, other, upsample)
        assert (got.dtype, got.shape) == (dtype, exact.shape)
        assert got.is_contiguous(memory_format=torch.channels_last)
        limit = (theirs - exact).square().mean().sqrt()
        ours = (got - exact).square().mean().sqrt()
        assert ours <= (4 * limit + 1e-7 if dtype == torch.float32 else 1.01 * limit + 1e-4)


@conv_builds
@pytest.mark.parametrize(("channels", "out"), [(1, 1), (5, 1), (1, 33), (33, 70), (64, 32), (130, 47)])
def test_weights_of_any_layout_are_reordered_and_transposed(channels: int, out: int, way: Build) -> None:
    kernel, weight = conv3x3_kernel(way), maps(way.dtype, channels, out, (1, 1))[1]
    turned = weight.flip(2, 3).transpose(0, 1)
    for laid_out in (weight, weight.contiguous(memory_format=torch.channels_last), weight.mT.contiguous().mT):
        assert torch.equal(kernel.reorder(laid_out), kernel.reorder(weight.clone()))
        assert torch.equal(conv3x3_weight(kernel.reorder(laid_out, transpose=True), channels, out), turned)


@conv_builds
@torch.no_grad()
def test_conv3x3_is_independent_of_threads_batches_and_layouts(
    way: Build,
) -> None:
    kernel = conv3x3_kernel(way)
    x, weight, bias = maps(way.dtype, 70, 100, (30, 33), batch=3)
    ordered, threads, residual = kernel.reorder(weight), torch.get_num_threads(), x.new_ones(3, 100, 30, 33)
    try:
        torch.set_num_threads(1)
        alone = kernel(x, ordered, 100, bias, residual)
        torch.set_num_threads(3)
        assert torch.equal(kernel(x.contiguous(), ordered, 100, bias, residual), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(kernel(x[1:], ordered, 100, bias, residual[1:]), alone[1:])
    assert kernel(x[:0], ordered, 100, bias).shape == (0, 100, 30, 33)


@conv_builds
@torch.no_grad()
def test_conv3x3_keeps_nan_near(way: Build) -> None:
    kernel = conv3x3_kernel(way)
    x, weight, bias = maps(way.dtype, 20, 20, (16, 16))
    x[1, 3, 6, 6] = float("nan")
    got = kernel(x, kernel.reorder(weight), 20, bias)
    assert got[1, :, 5:8, 5:8].isnan().all()
    assert not got[0].isnan().any()
    far = torch.ones(16, 16, dtype=torch.bool)
    far[4:12, 4:12] = False
    assert not got[1][:, far].isnan().any()


LINEAR_BUILDS = {"tiles": BUILDS[0], "float": BUILDS[3]}
linear_builds = pytest.mark.parametrize("way", LINEAR_BUILDS.values(), ids=LINEAR_BUILDS)


def linear_kernel(way: Build) -> LinearKernel:
    return LinearKernel(library(way), way.tiles)


@linear_builds
@pytest.mark.parametrize(
    ("rows", "width", "out"),
    [(1, 1, 2), (2, 1280, 1280), (33, 40, 70), (100, 320, 320), (77, 31, 33), (16, 32, 32), (5, 700, 34), (0, 9, 4),
     (700, 320, 2560), (130, 1290, 100), (1200, 2561, 64), (3, 5120, 1280)],
)  # fmt: skip
@pytest.mark.parametrize("halves", [False, True])
@torch.no_grad()
def test_linear_is_exact_but_for_rounding(rows: int, width: int, out: int, halves: bool, way: Build) -> None:
    """No further off than rounding what comes out to 8 bits, or to 24; and sums, to 24."""
    kernel, dtype = linear_kernel(way), way.dtype
    out += halves and out % 2
    key = torch.Generator().manual_seed(rows + width + out)
    x, weight, bias, residual = (
        torch.randn(shape, generator=key).to(dtype) for shape in ((rows, width), (out, width), (out,), (rows, out))
    )
    weight = weight / width**0.5
    ordered, threads = kernel.reorder(weight, halves), torch.get_num_threads()
    assert torch.equal(linear_weight(ordered, out, width, halves), weight)
    last, sums = 2**-8 if dtype == torch.bfloat16 else 2**-23, 6e-7 * width**0.5 + 1e-6
    for b, other in ((bias, None), (None, residual), (bias, residual)):
        exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
        exact = exact if other is None else exact + other
        got = kernel(x, ordered, out, b, other, halves)
        assert got.dtype == dtype
        assert ((got - exact).abs() <= last * exact.abs() + sums).all()
    h, gate = F.linear(x.double(), weight.double(), bias.double()).tensor_split(2, -1)
    if halves:
        got, exact = kernel(x, ordered, out, bias, None, halves=True, geglu=True), h * F.gelu(gate)
        near = 1e-4 if dtype == torch.bfloat16 else 0.0
        assert ((got - exact).abs() <= last * exact.abs() + (near + 2 * sums) * (h.abs() + gate.abs() + 1)).all()
    try:
        torch.set_num_threads(1)
        alone = kernel(x, ordered, out, bias, residual, halves)
        torch.set_num_threads(3)
        assert torch.equal(kernel(x.T.contiguous().T, ordered, out, bias, residual, halves), alone)
    finally:
        torch.set_num_threads(threads)
    if rows > 1:
        some = kernel(x[1:], ordered, out, bias, residual[1:], halves)
        assert torch.equal(some, alone[1:]), "each row is multiplied alone"


@linear_builds
@torch.no_grad()
def test_linear_keeps_nan_in_its_row(way: Build) -> None:
    kernel = linear_kernel(way)
    x, weight = torch.ones(40, 33, dtype=way.dtype), torch.ones(20, 33, dtype=way.dtype)
    x[7, 32] = float("nan")
    got = kernel(x, kernel.reorder(weight), 20, None)
    assert got[7].isnan().all()
    assert torch.equal(got.isnan().any(-1).nonzero().flatten(), torch.tensor([7]))
