"""Which kernel computes an operation, by dtype, phase, layout, CPU and size; else it is PyTorch's.

The sizes are measured: see benchmarks/attention.py and layers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from gradina.kernels.autograd import (
    SMALL_MAP,
    BlockwiseAttention,
    GEGLUFunction,
)
from gradina.kernels.bindings import (
    AttentionKernel,
    BFloat16Kernel,
    GEGLUKernel,
    GroupNormKernel,
    Kernel,
    LayerNormKernel,
    SoftmaxKernel,
    loaded,
    native,
)
from gradina.kernels.build import Build, build_for
from gradina.kernels.gemm import Conv3x3Kernel, LinearKernel
from gradina.kernels.operations import (
    Operation,
    bfloat16,
    conv3x3,
    linear,
    matmul_attention,
    native_pointwise,
    onednn_conv,
    onednn_linear,
    onednn_pointwise,
    train_conv3x3,
    train_group_norm,
    train_pointwise,
)
from gradina.kernels.prepack import PackedWeight

Make = Callable[[Build | None], Operation | None]
Phase = Literal["inference", "frozen", "training"]

INFERENCE: tuple[Phase, ...] = ("inference",)  # gradients are disabled
TRAINING: tuple[Phase, ...] = ("frozen", "training")  # they are enabled,
FIXED: tuple[Phase, ...] = ("inference", "frozen")  # but none goes through this operation

FP32, BF16, FP16 = (torch.float32,), (torch.bfloat16,), (torch.float16,)
BOTH = FP32 + BF16
LAST = "channels_last"
OF_MAPS = {"group_norm", "conv2d"}  # operations whose kernels may want that layout
SHORT = 2**16  # scores of an attention head: up to here plain products are the fastest to train in bf16
NARROW = 16  # channels of a 3x3 convolution: with fewer there is too little to multiply
MIN_CONV_WORK = 2**24  # multiplications for each tap, from which on the 3x3 convolution is the fastest to train in fp32


@dataclass(frozen=True)
class Row:
    """A kernel, and for what it is the fastest."""

    operation: str
    dtypes: tuple[torch.dtype, ...] | None  # of the input; None: any
    phases: tuple[Phase, ...]
    layout: str | None  # of the feature map (channels_last), or the order of a prepacked weight; None: any
    feature: str | None  # of the CPU, by which the kernels are built; None: any
    make: Make  # the kernel of a build
    fits: Callable[..., bool] | None = None  # sizes and other properties of the input; None: any


def dispatch(operation: str, x: Tensor, *given: Any, weight: Tensor | None = None) -> Operation | None:
    """The kernel for an operation on x with a weight and what else decides; None: PyTorch's."""
    packed = weight if isinstance(weight, PackedWeight) else None
    now = phase(x, packed)
    if now is None:
        return None
    build, layout = None, ""
    if packed is None:
        build = build_for(x.dtype)
        if operation in OF_MAPS and x.is_contiguous(memory_format=torch.channels_last):
            layout = LAST
    elif packed.packed.dtype == x.dtype:
        layout = packed.order.name
        if packed.order.native:
            build = build_for(x.dtype)
    for kernel, fits in kernels_for(operation, x.dtype, now, layout, build):
        if fits is None or fits(x, *given):
            return kernel
    return None


def phase(x: Tensor, packed: Tensor | None = None) -> Phase | None:
    """Whether gradients go through an operation on x; None off the CPU, and under a tracer or compiler.

    Fake tensors, by which memory is estimated, count as training.
    """
    if not x.is_cpu:
        return None
    if not torch.is_grad_enabled():
        return None if is_traced(x) else "inference"
    if isinstance(x, FakeTensor) and not torch.compiler.is_compiling():
        return "training"
    if is_traced(x):
        return None
    return "training" if x.requires_grad or (packed is not None and packed.requires_grad) else "frozen"


def is_traced(x: Tensor) -> bool:
    """Whether a compiler or tracer sees x, or it only stands for a tensor, and so needs PyTorch's operations."""
    stands_for_one = type(x) not in (Tensor, nn.Parameter)
    return stands_for_one or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


@cache
def kernels_for(
    operation: str, dtype: torch.dtype, phase: Phase, layout: str, build: Build | None
) -> tuple[tuple[Operation | None, Callable[..., bool] | None], ...]:
    """The kernels of the table, or None where one cannot be compiled, each with what it fits."""
    return tuple(
        (row.make(build), row.fits)
        for row in TABLE
        if row.operation == operation
        and (row.dtypes is None or dtype in row.dtypes)
        and phase in row.phases
        and row.layout in (None, layout)
        and (row.feature is None or (build is not None and build.feature == row.feature))
    )


def available(operation: str, dtype: torch.dtype, layout: str = "") -> bool:
    """Whether this CPU has a kernel for an operation in inference, of that dtype and layout, for some size."""
    found = kernels_for(operation, dtype, "inference", layout, build_for(dtype))
    return any(kernel is not None for kernel, _ in found)


def heads(queries: int, width: int, work: int = 2**22) -> Callable[[Tensor, Tensor], bool]:
    """Attention with so many queries at least, heads of that width at most, and so many multiplications in each."""

    def fits(q: Tensor, k: Tensor) -> bool:
        n, d = q.shape[-2:]
        return n >= queries and d <= width and n * k.shape[-2] * d >= work

    return fits


def is_short(q: Tensor, k: Tensor) -> bool:
    """Attention between few tokens."""
    return q.shape[-2] * k.shape[-2] <= SHORT


def is_long(q: Tensor, k: Tensor) -> bool:
    """Attention between many tokens."""
    return not is_short(q, k)


def same_dtype(x: Tensor, dtype: torch.dtype) -> bool:
    """A weight of the dtype of the input."""
    return x.dtype == dtype


def adds(x: Tensor, conv: nn.Conv2d | None = None, residual: Tensor | None = None) -> bool:
    """A residual, if any, that the kernel can add."""
    return residual is None or (residual.dtype == x.dtype and not torch.is_grad_enabled())


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether it is 1x1, and so a linear layer to each pixel."""
    return _is_plain(conv) and conv.kernel_size == (1, 1) and conv.padding == (0, 0)


def is_conv3x3(conv: nn.Conv2d) -> bool:
    """Whether it is 3x3, padded by one, with enough channels for the kernel."""
    enough = min(conv.out_channels, conv.in_channels) >= NARROW
    return _is_plain(conv) and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and enough


def trains_as_linear(x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> bool:
    """A 1x1 convolution without a residual."""
    return residual is None and is_pointwise(conv)


def trains_in_c(x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> bool:
    """A 3x3 convolution that the kernel trains the fastest, with all the reordering, forward and backward."""
    if residual is not None or not is_conv3x3(conv):
        return False
    pixels = x.shape[2] * x.shape[3]
    if x.dtype == torch.bfloat16:
        return pixels <= SMALL_MAP[x.dtype]
    return len(x) * pixels * conv.out_channels * conv.in_channels >= MIN_CONV_WORK


def has_bfloat16(x: Tensor) -> bool:
    """Whether there is a kernel that converts to bfloat16."""
    return native(BFloat16Kernel, torch.bfloat16) is not None


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the phase that it is called in."""
    return (dispatch("attention", q, k) or F.scaled_dot_product_attention)(q, k, v)


def _softmax(build: Build | None) -> SoftmaxKernel | None:
    return None if build is None else loaded(SoftmaxKernel, build)


def _blockwise(build: Build | None) -> Operation:
    return partial(BlockwiseAttention.apply, attend, _softmax(build))


def _matmul(build: Build | None) -> Operation:
    return partial(matmul_attention, _softmax(build))


def _causal(build: Build | None) -> Operation:
    return partial(matmul_attention, None, causal=True)


def _by(kind: type[Kernel], function: Callable[..., Any] | None = None, **how: Any) -> Make:
    """A kernel by itself, or a function that gets it first."""

    def make(build: Build | None) -> Operation | None:
        kernel: Any = None if build is None else loaded(kind, build)
        return kernel if kernel is None or function is None else partial(function, kernel, **how)

    return make


def _torch(function: Operation) -> Make:
    return lambda build: function


AMX, AVX_BF16, AVX = "amx_bf16", "avx512_bf16", "avx512f"  # CPU features, as build.py has them; None: any
ATTEND, CONV, NORM = _by(AttentionKernel), _by(Conv3x3Kernel, conv3x3), _by(GroupNormKernel)
LINEAR, GEGLU = _by(LinearKernel, linear), _by(LinearKernel, linear, halves=True, geglu=True)
HALVES, POINTWISE = _by(LinearKernel, linear, halves=True), _by(LinearKernel, native_pointwise)
UPSAMPLE, TRAIN_CONV = _by(Conv3x3Kernel, conv3x3, upsample=2), _by(Conv3x3Kernel, train_conv3x3)
TRAIN_NORM, TRAIN_GEGLU = _by(GroupNormKernel, train_group_norm), _by(GEGLUKernel, GEGLUFunction.apply)
ONEDNN, ONEDNN_CONV, ONEDNN_POINTWISE = map(_torch, (onednn_linear, onednn_conv, onednn_pointwise))

# fmt: off
TABLE = (
    #   operation           dtype phase      layout           CPU       kernel                   sizes
    Row("attention",        BF16, INFERENCE, None,            AMX,      ATTEND,                  heads(1, 256)),
    Row("attention",        BF16, INFERENCE, None,            AVX_BF16, ATTEND,                  heads(1, 512)),
    Row("attention",        FP32, INFERENCE, None,            AMX,      ATTEND,                  heads(1024, 256)),
    Row("attention",        FP32, INFERENCE, None,            AVX,      ATTEND,                  heads(1, 512)),
    Row("attention",        BF16, TRAINING,  None,            None,     _matmul,                 is_short),
    Row("attention",        None, TRAINING,  None,            None,     _blockwise,              is_long),
    Row("causal_attention", BF16, TRAINING,  None,            None,     _causal,                 is_short),
    Row("geglu",            BOTH, INFERENCE, None,            None,     _by(GEGLUKernel)),
    Row("geglu",            BOTH, TRAINING,  None,            None,     TRAIN_GEGLU),
    Row("layer_norm",       BOTH, INFERENCE, None,            None,     _by(LayerNormKernel),    same_dtype),
    Row("group_norm",       BOTH, INFERENCE, LAST,            None,     NORM),
    Row("group_norm",       BOTH, TRAINING,  LAST,            None,     TRAIN_NORM),
    Row("linear",           BF16, FIXED,     "linear",        AMX,      LINEAR,                  adds),
    Row("linear",           BOTH, FIXED,     "geglu",         None,     HALVES,                  adds),
    Row("linear",           BOTH, FIXED,     "onednn_linear", None,     ONEDNN,                  adds),
    Row("linear_geglu",     BF16, FIXED,     "geglu",         AMX,      GEGLU),
    Row("linear_geglu",     FP32, FIXED,     "geglu",         None,     GEGLU),
    Row("conv2d",           BOTH, FIXED,     "conv3x3",       None,     CONV,                    adds),
    Row("conv2d",           BF16, FIXED,     "linear",        AMX,      POINTWISE,               adds),
    Row("conv2d",           BOTH, FIXED,     "onednn_linear", None,     ONEDNN_POINTWISE,        adds),
    Row("conv2d",           BOTH, FIXED,     "onednn_conv",   None,     ONEDNN_CONV,             adds),
    Row("conv2d",           BOTH, TRAINING,  LAST,            None,     _torch(train_pointwise), trains_as_linear),
    Row("conv2d",           BOTH, TRAINING,  LAST,            None,     TRAIN_CONV,              trains_in_c),
    Row("upsample_conv",    BOTH, FIXED,     "conv3x3",       None,     UPSAMPLE),
    Row("bfloat16",         FP16, FIXED,     None,            None,     _torch(bfloat16),        has_bfloat16),
)
# fmt: on
