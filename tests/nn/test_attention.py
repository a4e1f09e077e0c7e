"""Attention against its formula and against torch's own layer."""

from __future__ import annotations

import torch
from torch import nn

from gradina.nn.attention import Attention


def test_attention_is_pytorchs_multihead_attention() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    ours = Attention(12, 3)
    q, k, v = theirs.in_proj_weight.chunk(3)
    ours.load_state_dict(
        {
            "q.weight": q, "k.weight": k, "v.weight": v, "out.weight": theirs.out_proj.weight,
            **dict.fromkeys(("q.bias", "k.bias", "v.bias", "out.bias"), torch.zeros(12)),
        }
    )  # fmt: skip
    x, context = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    assert torch.allclose(ours(x, context), theirs(x, context, context)[0], atol=1e-6)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


def test_attention_widths() -> None:
    layer = Attention(12, 3, context_width=20, head_width=8, bias=False)
    assert layer.k.weight.shape == (24, 20)
    assert layer.q.bias is None
    assert layer(torch.randn(2, 5, 12), torch.randn(2, 7, 20)).shape == (2, 5, 12)


def test_a_residual_is_added() -> None:
    layer, x = Attention(12, 3), torch.randn(2, 5, 12)
    assert torch.allclose(layer(x, residual=2 * x), layer(x) + 2 * x, atol=1e-6)
