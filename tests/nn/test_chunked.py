"""Gone over in strips, a map becomes what it becomes as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradina.kernels.prepack import packed
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.nn import chunked
from gradina.nn.chunked import in_strips, norm_silu_conv
from gradina.nn.conv import ResBlock, Upsample


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map is large, every strip is five rows high."""
    cut(monkeypatch)


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "is_large", lambda x, grows=1: not torch.is_grad_enabled())
    monkeypatch.setattr(chunked, "_rows", lambda x, grows: 5)


def map_of(*shape: int) -> torch.Tensor:
    return 3 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("height", [1, 4, 5, 6, 23])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_normalised_convolution(height: int, batch: int, memory: torch.memory_format) -> None:
    torch.manual_seed(1)
    norm, conv = nn.GroupNorm(4, 16, 1e-6), nn.Conv2d(16, 9, 3, padding=1)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = map_of(batch, 16, height, 7).contiguous(memory_format=memory)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu_conv(norm, conv, x), conv(F.silu(norm(x))), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("narrow")
def test_every_strip_is_looked_at_once() -> None:
    seen: list[int] = []
    x = torch.arange(12.0).view(1, 1, 12, 1)
    assert torch.equal(in_strips([lambda part: (seen.append(part.shape[2]), part)[1]], x), x)
    assert seen == [6, 7, 3]
    doubled = in_strips([lambda part: F.interpolate(part, scale_factor=(2.0, 1.0))], x, grows=2)
    assert torch.equal(doubled, x.repeat_interleave(2, dim=2))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [16, 8])
def test_what_is_spare_is_overwritten(memory: torch.memory_format, width: int) -> None:
    norm, conv = nn.GroupNorm(4, 16, 1e-6), nn.Conv2d(16, width, 3, padding=1)
    x, beside, shift = map_of(2, 16, 23, 7).contiguous(memory_format=memory), map_of(2, width, 23, 7), map_of(2, 16)
    with torch.no_grad():
        expected = conv(F.silu(norm(x + shift[:, :, None, None]))) + beside
        got = norm_silu_conv(norm, conv, x, beside / 2, lambda rows: 2 * rows, shift, spare=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got.data_ptr() == x.data_ptr()) == (width == 16)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_blocks_and_a_whole_decoder(dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    vae = AutoencoderKL(VAEConfig(widths=(16, 32, 32), blocks=1, groups=8)).to(dtype)
    vae = packed(vae.requires_grad_(False).eval())
    grow, block = Upsample(8).to(dtype), ResBlock(8, 16, groups=4).to(dtype)
    z, x = map_of(1, 4, 9, 7).to(dtype), map_of(2, 8, 11, 6).to(dtype)
    with torch.no_grad():
        whole = vae.decode(z), grow(x), block(x), vae.posterior(map_of(1, 3, 36, 28).to(dtype)).mean
        cut(monkeypatch)
        parts = vae.decode(z), grow(x), block(x), vae.posterior(map_of(1, 3, 36, 28).to(dtype)).mean
    for one, other in zip(parts, whole, strict=True):
        assert (one - other).abs().max() <= near * other.abs().max()


@pytest.mark.usefixtures("narrow")
def test_what_learns_is_not_cut() -> None:
    norm, conv, x = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1), map_of(1, 4, 16, 4).requires_grad_()
    norm_silu_conv(norm, conv, x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
