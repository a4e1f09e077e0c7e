"""The layers against their formulas and against torch's and diffusers' own."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.nn import functional as F

from gradina.nn import attention as attention_module
from gradina.nn.attention import Attention, Blockwise, attention, plain
from gradina.nn.conv import Downsample, ResBlock, Upsample
from gradina.nn.embed import TimeMLP, sinusoidal


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal):
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    assert torch.allclose(attention(q, k, v, causal), scores.softmax(-1) @ v)
    with torch.no_grad():  # another way
        assert torch.allclose(attention(q, k, v, causal), scores.softmax(-1) @ v)


@pytest.mark.parametrize(
    ("n", "m", "causal"), [(1, 1, False), (1, 1, True), (16, 77, False), (128, 128, False), (128, 128, True)]
)
def test_both_ways_of_attention_have_the_same_slopes(n, m, causal):
    grads = []
    for way in (plain, F.scaled_dot_product_attention):
        q, k, v = (torch.randn(2, 3, size, 8, generator=torch.Generator().manual_seed(size)) for size in (n, m, m))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        (way(*inputs, is_causal=causal) ** 2).sum().backward()
        grads.append([x.grad for x in inputs])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_learning_in_bf16_takes_the_plain_way():
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.bfloat16) for _ in range(3))
    assert torch.equal(attention(q, k, v), plain(q, k, v))
    exact = plain(q.double(), k.double(), v.double())
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            assert (attention(q, k, v).double() - exact).abs().max() < 0.03


def test_attention_layer_is_torchs():
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


def test_attention_widths():
    layer = Attention(12, 3, context_width=20, head_width=8, bias=False)
    assert layer.k.weight.shape == (24, 20)
    assert layer.q.bias is None
    assert layer(torch.randn(2, 5, 12), torch.randn(2, 7, 20)).shape == (2, 5, 12)


@pytest.mark.parametrize(("width", "out"), [(8, 8), (8, 16)])
@pytest.mark.parametrize("timed", [False, True])
def test_residual_block(width, out, timed):
    block = ResBlock(width, out, time_width=12 if timed else None, groups=4)
    x, time = torch.randn(2, width, 6, 5), torch.randn(2, 12)
    h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias)))
    if timed:
        h = h + block.time(F.silu(time))[..., None, None]
    h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias)))
    assert (block.skip is None) == (width == out)
    assert torch.allclose(block(x, time), h + (x if width == out else block.skip(x)), atol=1e-6)
    assert torch.equal(block(x), block(x, None))


def test_downsampling_pads_as_its_network_does():
    x = torch.randn(1, 4, 6, 8)
    both, one = Downsample(4), Downsample(4, one_sided=True)
    assert both(x).shape == one(x).shape == (1, 4, 3, 4)
    one.load_state_dict(both.state_dict())
    padded = F.pad(x, (0, 1, 0, 1))
    assert torch.allclose(one(x), F.conv2d(padded, one.conv.weight, one.conv.bias, stride=2))
    assert not torch.allclose(one(x), both(x))


def test_upsampling_doubles_or_grows_to_a_size():
    grow = Upsample(4)
    x = torch.randn(1, 4, 3, 5)
    assert torch.allclose(grow(x), grow.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), atol=1e-6)
    assert grow(x, size=(7, 9)).shape == (1, 4, 7, 9)


def test_time_embedding_is_that_of_diffusers():
    t = torch.tensor([0, 1, 37, 999])
    theirs = get_timestep_embedding(t, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(sinusoidal(t, 32), theirs, atol=1e-6)
    mlp = TimeMLP(32, 64)
    assert torch.allclose(mlp(t), mlp.proj_out(F.silu(mlp.proj_in(theirs))), atol=1e-6)
    assert mlp.half()(t).dtype == torch.float16


BLOCKS = [(1, 2, 300, 300, 16), (2, 1, 1000, 77, 40), (2, 3, 77, 1000, 8), (1, 8, 513, 511, 20)]


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blockwise_learns_as_the_equation(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and all gradients, with several blocks that do not divide the rows evenly."""
    monkeypatch.setattr(attention_module, "AT_ONCE", 100 * shape[3])
    b, heads, n, m, d = shape
    key = torch.Generator().manual_seed(0)
    exact = [torch.randn(b, heads, rows, d, generator=key, dtype=torch.float64) for rows in (n, m, m)]
    grad_output = torch.randn(b, heads, n, d, generator=key, dtype=torch.float64)
    found = []
    for way, kind in ((plain, torch.float64), (Blockwise.apply, dtype)):
        inputs = [x.to(kind).clone().requires_grad_() for x in exact]
        out = way(*inputs)
        out.backward(grad_output.to(kind))
        found.append([out.detach(), *(x.grad for x in inputs)])
    for expected, got in zip(*found, strict=True):
        assert got is not None
        assert got.dtype == dtype
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert error < (1e-12 if dtype == torch.float64 else 0.03)


def test_long_attention_learns_blockwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Blockwise, "apply", lambda q, k, v: (seen.append(q.shape[-2]), plain(q, k, v))[1])
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
