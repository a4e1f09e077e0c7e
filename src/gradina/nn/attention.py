"""Multi-head attention."""

from __future__ import annotations

from torch import Tensor, nn

from gradina.nn.linear import Linear
from gradina.nn.ops import attention, linear_add


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
        self.q = Linear(width, inner, bias=bias)
        self.k = Linear(context_width or width, inner, bias=bias)
        self.v = Linear(context_width or width, inner, bias=bias)
        self.out = Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """The attention's output, plus a residual (b, n, width)."""
        context = x if context is None else context
        q, k, v = (self._split(h) for h in (self.q(x), self.k(context), self.v(context)))
        h = attention(q, k, v, causal=self.causal)
        h = h.transpose(1, 2).flatten(2)
        return self.out(h) if residual is None else linear_add(self.out, h, residual)

    def _split(self, h: Tensor) -> Tensor:
        """(b, n, heads * d) -> (b, heads, n, d)"""
        return h.view(*h.shape[:2], self.heads, -1).transpose(1, 2)
