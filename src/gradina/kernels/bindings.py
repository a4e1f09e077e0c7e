"""The kernels in C as functions of tensors on the CPU, without autograd: forward, and backward where there is one."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gradina.kernels.build import Build, build_for, library


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel of a compiled library."""

    library: ctypes.CDLL
    tiles: bool = False  # whether it multiplies by AMX tiles


AnyKernel = TypeVar("AnyKernel", bound=Kernel)


def native(kind: type[AnyKernel], dtype: torch.dtype) -> AnyKernel | None:
    """The kernel for a dtype on this CPU; None where there is none."""
    build = build_for(dtype)
    return None if build is None else loaded(kind, build)


def loaded(kind: type[AnyKernel], build: Build) -> AnyKernel | None:
    """The kernel of one build; None where it cannot be compiled or does not run."""
    found = library(build.flags)
    return None if found is None else kind(found, build.tiles)


class AttentionKernel(Kernel):
    """softmax(q kᵀ / √d) v."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """For q (b, heads, n, d) and k, v (b, heads, m, d), with d up to 512."""
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        (b, heads, n, d), m = q.shape, k.shape[2]
        out = q.new_empty(b, n, heads, d)
        views = [x for t in (q, k, v) for x in (t, (ctypes.c_int64 * 3)(*t.stride()[:3]))]
        call(self.library.attention, *views, out, b, heads, n, m, d)
        return out.transpose(1, 2)


class SoftmaxKernel(Kernel):
    """softmax(scale · x) over the last dimension."""

    def __call__(self, x: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
        """`out` may be x."""
        x = x.contiguous()
        out = torch.empty_like(x) if out is None else out
        call(self.library.softmax, x, out, *rows(x), scale)
        return out

    def backward(self, probs: Tensor, grad_output: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
        """The gradient of x from the output and its gradient; `out` may be the latter."""
        grad_output = grad_output.contiguous()
        out = torch.empty_like(probs) if out is None else out
        call(self.library.softmax_backward, probs, grad_output, out, *rows(probs), scale)
        return out


class GEGLUKernel(Kernel):
    """gelu(gate) · h for the halves of (..., h gate)."""

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 2 · width) -> (..., width)"""
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        call(self.library.geglu, x, out, *rows(out))
        return out

    def backward(self, x: Tensor, grad_output: Tensor) -> Tensor:
        """The gradient of x from that of the output, (..., width)."""
        x, grad_output = x.contiguous(), grad_output.contiguous()
        grad_x = torch.empty_like(x)
        call(self.library.geglu_backward, x, grad_output, grad_x, *rows(grad_output))
        return grad_x


class LayerNormKernel(Kernel):
    """LayerNorm."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """For x (..., width) of the dtype of the weights."""
        x = x.contiguous()
        out = torch.empty_like(x)
        call(self.library.layer_norm, x, out, *rows(x), weight, bias, eps)
        return out


class GroupNormKernel(Kernel):
    """GroupNorm of channels-last feature maps (b, c, h, w) and the SiLU behind it."""

    def __call__(self, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        """norm(x + shift) for a shift (b, c), and its SiLU."""
        scale, offset, *_ = self.moments(norm, x, shift)
        return self.scaled(x, scale, offset, silu)

    def moments(self, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> Tensor:
        """Scale, offset, 1 / std and mean (4, b, c) of norm(x + shift), for a shift (b, c).

        The norm is scale · x + offset, and without its weight and bias (x - mean) / std.
        """
        made = torch.empty(4, *x.shape[:2])
        given = (None if t is None else t.detach().float().contiguous() for t in (shift, norm.weight, norm.bias))
        call(self.library.group_norm_moments, x, *pixels(x), norm.num_groups, *given, norm.eps, *made)
        return made

    def scaled(self, x: Tensor, scale: Tensor, offset: Tensor, silu: bool) -> Tensor:
        """scale · x + offset, and its SiLU."""
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        call(self.library.group_norm_apply, x, out, *pixels(x), scale, offset, silu)
        return out

    def backward(
        self, x: Tensor, moments: Tensor, weight: Tensor, grad_output: Tensor, groups: int, silu: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of x, weight (c,), bias (c,) and shift (b, c) from that of the output, (b, c, h, w)."""
        x, grad_output = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad_output))
        grad_x, grad_shift = torch.empty_like(x), torch.empty(x.shape[:2])
        grad_weight, grad_bias = torch.empty(2, x.shape[1])
        given = (groups, silu, *moments, weight.float())
        grads = (grad_x, grad_weight, grad_bias, grad_shift)
        call(self.library.group_norm_backward, x, grad_output, *pixels(x), *given, *grads)
        return grads


class BFloat16Kernel(Kernel):
    """float16 -> the nearest bfloat16, as PyTorch rounds."""

    def __call__(self, x: Tensor) -> Tensor:
        """For a contiguous x of any shape."""
        out = torch.empty_like(x, dtype=torch.bfloat16)
        call(self.library.f16_to_bf16, x, out, x.numel())
        return out


class DenormalsKernel(Kernel):
    """Whether denormals are flushed to zero, in all threads."""

    def __call__(self, flush: int) -> int:
        """Sets the mode (1 to flush, or what an earlier call returned); returns the mode before."""
        before: int = self.library.flush_denormals(ctypes.c_int64(flush))
        return before


def rows(x: Tensor) -> tuple[int, int]:
    """How many rows x (..., width) has, and their width."""
    width = x.shape[-1]
    return x.numel() // max(1, width), width


def pixels(x: Tensor) -> tuple[int, int, int]:
    """How many images x (b, c, h, w) has, their pixels and their channels."""
    b, channels, height, width = x.shape
    return b, height * width, channels


def call(function: Any, *given: Any) -> None:
    """Calls a C function; fake tensors, by which memory is estimated, are left as they are."""
    if not any(isinstance(x, FakeTensor) for x in given) and function(*map(_as_c, given)):
        raise MemoryError(f"{function.__name__}: out of memory")


def _as_c(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, float):
        return ctypes.c_double(x)
    return ctypes.c_int64(x) if isinstance(x, int) else x
