"""Attention: every network here asks one function for softmax(q kᵀ / √d) v, so there is one place to make it fast."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.native import WIDEST, own_attention

SHORT = 256 * 256  # scores for each head: up to here, learning in bf16 on a CPU, plain products are the quicker way
LONG = 2**22  # multiplications for each head: from here on, drawing on a CPU, our own is


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v for q (b, heads, n, d) and k, v (b, heads, m, d): (b, heads, n, d).

    Source: Vaswani et al., "Attention Is All You Need", equation 1.
    """
    learning = torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if learning and q.shape[-2] * k.shape[-2] <= SHORT:
        return plain(q, k, v, causal)
    if _is_long(q, k) and not causal and (own := own_attention(q.dtype)):
        return own(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _is_long(q: Tensor, k: Tensor) -> bool:
    """Whether our own way is worth while, and open: on a CPU, without gradients, in no compiler and no tracer."""
    if q.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return q.shape[-1] <= WIDEST and q.shape[-2] * k.shape[-2] * q.shape[-1] >= LONG


def plain(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """The same, written out: on the way back, in bf16, three to seven times as quick (benchmarks/attention.py)."""
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


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

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (self._split(h) for h in (self.q(x), self.k(context), self.v(context)))
        h = attention(q, k, v, causal=self.causal)
        return self.out(h.transpose(1, 2).flatten(2))

    def _split(self, h: Tensor) -> Tensor:
        """(b, n, heads * d) -> (b, heads, n, d)"""
        return h.view(*h.shape[:2], self.heads, -1).transpose(1, 2)
