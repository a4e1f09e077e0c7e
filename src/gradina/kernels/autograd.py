"""Kernels with a backward, as autograd functions for training."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.bindings import GEGLUKernel, GroupNormKernel, SoftmaxKernel
from gradina.kernels.gemm import Conv3x3Kernel

Result = TypeVar("Result")
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

SCORES_AT_ONCE = 2**21  # of an attention head, that its backward computes together
SMALL_MAP = {torch.float32: 16, torch.bfloat16: 64}  # pixels: up to here grad_weight is fastest as one matrix product


def once_differentiable(backward: Callable[..., Result]) -> Callable[..., Result]:
    """A backward in C, which has no backward of its own. Raises RuntimeError where one is asked for."""

    @wraps(backward)
    def checked(*given: Any) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of gradients were asked for (create_graph=True), and the native kernels have none: "
                "set GRADINA_NATIVE=0 in the environment to train without them"
            )
        return backward(*given)

    return checked


class GEGLUFunction(torch.autograd.Function):
    """GEGLU; only the input is saved."""

    @staticmethod
    def forward(ctx: Any, kernel: GEGLUKernel, x: Tensor) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(x)
        return kernel(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, ctx.kernel.backward(*ctx.saved_tensors, grad_output)


class GroupNormFunction(torch.autograd.Function):
    """norm(x + shift), and its SiLU; only the input and its moments are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: GroupNormKernel,
        norm: nn.GroupNorm,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        silu: bool,
    ) -> Tensor:
        moments = kernel.moments(norm, x, shift)
        scale, offset, *_ = moments
        ctx.kernel, ctx.groups, ctx.silu, ctx.shifted = kernel, norm.num_groups, silu, shift is not None
        ctx.save_for_backward(x, moments, weight)
        return kernel.scaled(x, scale, offset, silu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.kernel.backward(*ctx.saved_tensors, grad_output, ctx.groups, ctx.silu)
        grad_x, grad_weight, grad_bias, grad_shift = grads
        return None, None, grad_x, grad_weight, grad_bias, grad_shift if ctx.shifted else None, None


class Conv3x3Function(torch.autograd.Function):
    """A 3x3 convolution, padded by one, of channels-last feature maps.

    On small maps the gradient of its weight is one matrix product. Source: Chellapilla, Puri & Simard, "High
    Performance Convolutional Neural Networks for Document Processing", 2006.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Conv3x3Kernel, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(x, weight)
        return kernel(x, kernel.reorder(weight), len(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        out, channels = weight.shape[:2]
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        rows = grad_output.permute(0, 2, 3, 1).flatten(0, 2)
        grad_x = grad_weight = grad_bias = None
        _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        if needs_x:
            grad_x = ctx.kernel(grad_output, ctx.kernel.reorder(weight, transpose=True), channels, None)
        if needs_weight and x.shape[2] * x.shape[3] <= SMALL_MAP[x.dtype]:
            grad_weight = (rows.T @ im2col(x)).view(out, 3, 3, channels).permute(0, 3, 1, 2)
        elif needs_weight:
            how: Any = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
            grad_weight = torch.ops.aten.convolution_backward(grad_output, x, weight, None, *how)[1]
        if needs_bias:
            grad_bias = rows.sum(0)
        return None, grad_x, grad_weight, grad_bias


def im2col(x: Tensor) -> Tensor:
    """The 3x3 neighbourhood of each pixel of x (b, c, h, w), padded by one: (b·h·w, 9·c), row by row of it."""
    b, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, pixel, _ = padded.stride()
    lines = padded.as_strided((b, height, width, 3, 3 * channels), (image, row, pixel, row, 1))
    return lines.reshape(b * height * width, 9 * channels)


class SoftmaxFunction(torch.autograd.Function):
    """softmax(scale · scores); only the output is saved."""

    @staticmethod
    def forward(ctx: Any, kernel: SoftmaxKernel, scores: Tensor, scale: float) -> Tensor:
        probs = kernel(scores, scale)
        ctx.kernel, ctx.scale = kernel, scale
        ctx.save_for_backward(probs)
        return probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.kernel.backward(*ctx.saved_tensors, grad_output, ctx.scale), None


class BlockwiseAttention(torch.autograd.Function):
    """Attention over many tokens: the backward computes the scores again, some queries at a time.

    Head by head and in the same buffers, so that nothing leaves the cache: three to six times as fast as PyTorch's
    backward, in bf16. Source: Dao et al., "FlashAttention" (2205.14135), algorithm 4.
    """

    @staticmethod
    def forward(ctx: Any, attend: Attend, softmax: SoftmaxKernel | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.softmax = softmax
        ctx.save_for_backward(q, k, v)
        with torch.no_grad():
            return attend(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        shape, softmax = ctx.saved_tensors[0].shape, ctx.softmax
        q, k, v, grad_output = (x.flatten(0, 1).contiguous() for x in (*ctx.saved_tensors, grad_output))
        scale = q.shape[-1] ** -0.5
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        n, m = q.shape[1], k.shape[1]
        rows = min(n, max(16, SCORES_AT_ONCE // m))
        probs_buffer, grad_scores_buffer = q.new_empty(2, rows, m)
        for head in range(len(q)):
            keys, values = k[head].T.contiguous(), v[head].T.contiguous()
            for a in range(0, n, rows):
                queries, grad_rows = q[head, a : a + rows], grad_output[head, a : a + rows]
                probs, grad_scores = probs_buffer[: len(queries)], grad_scores_buffer[: len(queries)]
                torch.mm(queries, keys, out=probs)
                torch.mm(grad_rows, values, out=grad_scores)
                if softmax:
                    softmax(probs, scale, out=probs)
                    softmax.backward(probs, grad_scores, scale, out=grad_scores)
                else:
                    torch._softmax(probs.mul_(scale), -1, False, out=probs)
                    like = (grad_scores, probs, -1, probs.dtype)
                    torch._softmax_backward_data(*like, grad_input=grad_scores).mul_(scale)
                grad_v[head] += probs.T @ grad_rows
                torch.mm(grad_scores, k[head], out=grad_q[head, a : a + rows])
                grad_k[head] += grad_scores.T @ queries
        grad_k, grad_v = grad_k.to(k.dtype), grad_v.to(v.dtype)
        grads = (grad_q.view(*shape[:2], n, -1), grad_k.view(*shape[:2], m, -1), grad_v.view(*shape[:2], m, -1))
        return None, None, *grads
