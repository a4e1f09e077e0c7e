"""The fused operations: as their PyTorch definitions, in place only with an underscore, the same in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.prepack import ONEDNN_LINEAR, PackedWeight
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.nn import chunked, ops
from gradina.nn.chunked import TOKENS
from gradina.nn.conv import ResBlock, Upsample
from gradina.nn.geglu import GEGLU
from gradina.nn.ops import (
    add_,
    attention,
    cast_half,
    norm_silu_,
    norm_silu_conv,
    norm_silu_conv_,
    silu_,
    weight_like,
)
from gradina.runtime.prepack import prepack


def pair() -> tuple[Tensor, Tensor]:
    key = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, generator=key), torch.randn(2, 3, 4, generator=key)


def test_add_overwrites_where_gradients_are_disabled() -> None:
    h, x = pair()
    expected = h + x
    assert torch.equal(add_(h, x), expected)
    assert torch.equal(h, pair()[0]), "gradients are enabled"
    with torch.no_grad():
        got = add_(h, x)
    assert torch.equal(got, expected)
    assert got.data_ptr() == h.data_ptr()


@torch.no_grad()
def test_add_promotes() -> None:
    h, x = pair()
    got = add_(h.bfloat16(), x)
    assert got.dtype == torch.float32
    assert torch.equal(got, h.bfloat16() + x)


def test_silu_overwrites_where_gradients_are_disabled() -> None:
    h, _ = pair()
    expected = F.silu(h)
    assert torch.equal(silu_(h), expected)
    with torch.no_grad():
        assert silu_(h).data_ptr() == h.data_ptr()
    assert torch.equal(h, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    assert torch.allclose(attention(q, k, v, causal), scores.softmax(-1) @ v)
    with torch.no_grad():  # another kernel
        assert torch.allclose(attention(q, k, v, causal), scores.softmax(-1) @ v)


WIDTH, TOKENS_AT_ONCE = 8, TOKENS // (8 * 4)  # of fp32


@pytest.mark.parametrize("count", [TOKENS_AT_ONCE // 2, TOKENS_AT_ONCE // 2 + 1, TOKENS_AT_ONCE + 77])
@torch.no_grad()
def test_geglu_ffn_in_chunks(count: int) -> None:
    torch.manual_seed(0)
    layer, x = GEGLU(WIDTH), torch.randn(2, count, WIDTH)
    h, gate = layer.proj_in(x).chunk(2, -1)
    plain = layer.proj_out(h * F.gelu(gate)) + x
    assert torch.allclose(layer(x, x), plain, atol=1e-6)
    assert torch.allclose(layer(x, x.mT.contiguous().mT), plain, atol=1e-6), "in any layout"


def test_geglu_ffn_is_trained_as_a_whole() -> None:
    seen: list[int] = []
    layer = GEGLU(WIDTH)
    layer.proj_out.register_forward_hook(lambda _, given, __: seen.append(given[0].numel() // (4 * WIDTH)))
    x = torch.randn(1, TOKENS_AT_ONCE + 1, WIDTH)
    layer(x, x).sum().backward()
    with torch.no_grad():
        layer(x, x)
    assert seen == [TOKENS_AT_ONCE + 1, TOKENS_AT_ONCE, 1]


NORMS = {torch.float32: 1e-5, torch.bfloat16: 2**-8}  # of the largest value


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@torch.no_grad()
def test_norm_silu_of_any_layout_and_by_rows(dtype: torch.dtype) -> None:
    key = torch.Generator().manual_seed(40)
    norm = nn.GroupNorm(4, 40, 1e-6).requires_grad_(False)
    norm.weight.copy_(torch.randn(40, generator=key))
    norm.bias.copy_(torch.randn(40, generator=key))
    x = 5 + 2 * torch.randn(2, 40, 30, 11, generator=key)
    x[:, :, 0, 0] += 100
    shift = 3 * torch.randn(2, 40, generator=key)
    norm, x, shift = norm.to(dtype), x.to(dtype, memory_format=torch.channels_last), shift.to(dtype)
    expected = norm_silu_(norm, x.clone(), shift)
    tolerance = 2 * NORMS[dtype] * expected.abs().max()
    got = norm_silu_(norm, x.clone(memory_format=torch.contiguous_format), shift)
    assert (got - expected).abs().max() <= tolerance
    one, moved = x[1:], shift[1:]
    for given in (one, one.contiguous()):
        layer = ops._norm_silu_rows(norm, given, moved)
        rows = torch.cat([layer(given[:, :, :13]), layer(given[:, :, 13:])], dim=2)
        assert (rows - expected[1:]).abs().max() <= tolerance


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map is large, every chunk is five rows high."""
    cut(monkeypatch)


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "is_large", lambda x, upsample=1: not torch.is_grad_enabled())
    monkeypatch.setattr(chunked, "_rows", lambda x, upsample: 5)


def random_map(*shape: int) -> Tensor:
    return 3 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("height", [1, 4, 5, 6, 23])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_norm_silu_conv_in_chunks(height: int, batch: int, memory: torch.memory_format) -> None:
    torch.manual_seed(1)
    norm, conv = nn.GroupNorm(4, 16, 1e-6), nn.Conv2d(16, 9, 3, padding=1)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = random_map(batch, 16, height, 7).contiguous(memory_format=memory)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu_conv(norm, conv, x), conv(F.silu(norm(x))), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [16, 8])
def test_norm_silu_conv_in_chunks_overwrites_its_input(memory: torch.memory_format, width: int) -> None:
    norm, conv = nn.GroupNorm(4, 16, 1e-6), nn.Conv2d(16, width, 3, padding=1)
    x, residual = random_map(2, 16, 23, 7).contiguous(memory_format=memory), random_map(2, width, 23, 7)
    shift = random_map(2, 16)
    with torch.no_grad():
        expected = conv(F.silu(norm(x + shift[:, :, None, None]))) + residual
        got = norm_silu_conv_(norm, conv, x, shift, residual / 2, lambda rows: 2 * rows)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got.data_ptr() == x.data_ptr()) == (width == 16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_blocks_and_a_whole_decoder(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    vae = AutoencoderKL(VAEConfig(widths=(16, 32, 32), blocks=1, groups=8)).to(dtype)
    vae = prepack(vae.requires_grad_(False).eval())
    upsample, block = Upsample(8).to(dtype), ResBlock(8, 16, groups=4).to(dtype)
    z, x = random_map(1, 4, 9, 7).to(dtype), random_map(2, 8, 11, 6).to(dtype)
    with torch.no_grad():
        whole = vae.decode(z), upsample(x), block(x), vae.posterior(random_map(1, 3, 36, 28).to(dtype)).mean
        cut(monkeypatch)
        parts = vae.decode(z), upsample(x), block(x), vae.posterior(random_map(1, 3, 36, 28).to(dtype)).mean
    for one, other in zip(parts, whole, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.usefixtures("chunks")
def test_training_is_not_chunked() -> None:
    norm, conv, x = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1), random_map(1, 4, 16, 4).requires_grad_()
    norm_silu_conv(norm, conv, x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("given", "dtype"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)])
@pytest.mark.parametrize("native", ["0", "1"])
def test_cast_half(given: torch.dtype, dtype: torch.dtype, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADINA_NATIVE", native)
    x = (100 * torch.randn(37, 41, generator=torch.Generator().manual_seed(0))).to(given)
    for each in (x, x.T):
        assert torch.equal(cast_half(each, dtype), each.to(dtype))


def test_other_values_keep_the_order_of_a_weight() -> None:
    plain = torch.randn(5, 3)
    packed = weight_like(PackedWeight(plain, ONEDNN_LINEAR), 2 * plain)
    assert isinstance(packed, PackedWeight)
    assert packed.order is ONEDNN_LINEAR
    assert torch.equal(packed.plain(), 2 * plain)
    other = weight_like(nn.Parameter(plain), 2 * plain)
    assert type(other) is nn.Parameter
    assert not other.requires_grad
    assert torch.equal(other, 2 * plain)
