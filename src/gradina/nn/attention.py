"""Attention: every network here asks one function for softmax(q kᵀ / √d) v, so there is one place to make it fast."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.bindings import Attend, Softmax, compiled, own_softmax
from gradina.kernels.build import kernel
from gradina.kernels.dispatch import is_inference, is_training, once_differentiable
from gradina.kernels.prepacked import plus

SHORT = 256 * 256  # scores for each head: up to here, learning in bf16 on a CPU, plain products are the quickest way
AT_ONCE = 2**21  # scores that are computed at once in the backward, where there are more


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v for q (b, heads, n, d) and k, v (b, heads, m, d): (b, heads, n, d).

    Source: Vaswani et al., "Attention Is All You Need", equation 1.
    """
    if torch.is_grad_enabled() and q.device.type == "cpu":
        short = q.shape[-2] * k.shape[-2] <= SHORT
        if short and q.dtype == torch.bfloat16:
            return plain(q, k, v, causal)
        if not short and not causal:
            return cast(Tensor, Blockwise.apply(q, k, v))  # type: ignore[no-untyped-call]
    if not causal and (own := _own(q, k)):
        return own(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _own(q: Tensor, k: Tensor) -> Attend | None:
    """Our own way, where it is open, and the quickest."""
    own = kernel(q.dtype) if is_inference(q) else None
    return compiled(own) if own and own.suits(q, k) else None


def plain(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """The same, written out: its backward in bf16 is three to seven times as fast (benchmarks/attention.py)."""
    scale = q.shape[-1] ** -0.5
    if not is_causal and is_training(q) and (own := own_softmax(q.dtype)):
        return cast(Tensor, Shares.apply(own, q @ k.mT, scale)) @ v  # type: ignore[no-untyped-call]
    scores = q * scale @ k.mT
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


class Shares(torch.autograd.Function):
    """softmax(scale · scores) for training: forward and backward in C."""

    @staticmethod
    def forward(ctx: Any, own: Softmax, scores: Tensor, scale: float) -> Tensor:
        probs = own(scores, scale)
        ctx.own, ctx.scale = own, scale
        ctx.save_for_backward(probs)
        return probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.own.back(*ctx.saved_tensors, grad_output, ctx.scale), None


class Blockwise(torch.autograd.Function):
    """The same over many tokens, for training: scores are recomputed in the backward, some rows at a time.

    Head by head and in numbers that are used again, so that nothing leaves the cache: three to six times as quick as
    PyTorch's own backward, in bf16. Source: Dao et al., "FlashAttention" (2205.14135), algorithm 4.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        with torch.no_grad():
            return attention(q, k, v) if type(q) is Tensor else F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape, own = ctx.saved_tensors[0].shape, own_softmax(ctx.saved_tensors[0].dtype)
        q, k, v, grad_output = (x.flatten(0, 1).contiguous() for x in (*ctx.saved_tensors, grad_output))
        scale = q.shape[-1] ** -0.5
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        n, m = q.shape[1], k.shape[1]
        rows = min(n, max(16, AT_ONCE // m))
        probs, grad_scores = q.new_empty(2, rows, m)
        for head in range(len(q)):
            keys, values = k[head].T.contiguous(), v[head].T.contiguous()
            for a in range(0, n, rows):
                some, back = q[head, a : a + rows], grad_output[head, a : a + rows]
                share, grad_score = probs[: len(some)], grad_scores[: len(some)]
                torch.mm(some, keys, out=share)
                torch.mm(back, values, out=grad_score)
                if own:
                    own(share, scale, out=share)
                    own.back(share, grad_score, scale, out=grad_score)
                else:
                    torch._softmax(share.mul_(scale), -1, False, out=share)
                    torch._softmax_backward_data(grad_score, share, -1, share.dtype, grad_input=grad_score).mul_(scale)
                grad_v[head] += share.T @ back
                torch.mm(grad_score, k[head], out=grad_q[head, a : a + rows])
                grad_k[head] += grad_score.T @ some
        grad_k, grad_v = grad_k.to(k.dtype), grad_v.to(v.dtype)
        return grad_q.view(*shape[:2], n, -1), grad_k.view(*shape[:2], m, -1), grad_v.view(*shape[:2], m, -1)


class Attention(nn.Module):
    """Multi-head attention of x (b, n, width) over a context (b, m, context_width), or over x itself."""

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int | None = None,
        head_width: int | None = None,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        inner = heads * (head_width or width // heads)
        self.q = nn.Linear(width, inner, bias=bias)
        self.k = nn.Linear(context_width or width, inner, bias=bias)
        self.v = nn.Linear(context_width or width, inner, bias=bias)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """What x finds in the context; plus what is `beside` it."""
        context = x if context is None else context
        q, k, v = (self._split(h) for h in (self.q(x), self.k(context), self.v(context)))
        h = attention(q, k, v, causal=self.causal)
        h = h.transpose(1, 2).flatten(2)
        return self.out(h) if beside is None else plus(self.out, h, beside)

    def _split(self, h: Tensor) -> Tensor:
        """(b, n, heads * d) -> (b, heads, n, d)"""
        return h.view(*h.shape[:2], self.heads, -1).transpose(1, 2)
