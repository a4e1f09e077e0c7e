"""Prepacked networks compute what plain ones do, and to all else are plain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradina.kernels import dispatch
from gradina.kernels.dispatch import LAST, available
from gradina.kernels.prepack import PackedWeight
from gradina.models.unet import UNet, UNetConfig
from gradina.nn.conv import Conv2d, Upsample
from gradina.nn.geglu import GatedLinear
from gradina.nn.linear import Linear
from gradina.nn.ops import conv_add, geglu, linear_add, linear_geglu
from gradina.runtime.device import multiplies_bf16
from gradina.runtime.prepack import channels_last, prepack, restore

DTYPES = (torch.float32, torch.bfloat16)
FP32 = {"rtol": 1e-5, "atol": 1e-5}
BF16 = {"rtol": 2e-2, "atol": 2e-2}
packs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="oneDNN packs bf16 for CPUs that multiply in it")
PRECISIONS = [(torch.float32, FP32), pytest.param(torch.bfloat16, BF16, marks=packs_bf16)]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        Conv2d(5, 24, 3, padding=1), nn.SiLU(), Conv2d(24, 24, 3, stride=2, padding=1, bias=False),
        Conv2d(24, 9, 1), nn.GroupNorm(3, 9), nn.Flatten(2), Linear(12, 7), Linear(7, 33, bias=False),
    )  # fmt: skip
    return nn.Sequential(*layers).to(dtype).requires_grad_(False).eval()


def given(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 8, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def orders(layers: nn.Module) -> list[str | None]:
    """The orders of the weights; None: plain."""
    found = [m.weight for m in layers.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [weight.order.name if isinstance(weight, PackedWeight) else None for weight in found]


def is_packed(layers: nn.Module) -> bool:
    return any(orders(layers))


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are packed from 0 weights on."""
    monkeypatch.setattr("gradina.runtime.prepack.LARGE", 0)


@pytest.mark.parametrize(("dtype", "near"), PRECISIONS)
def test_prepacked_networks_compute_the_same(dtype: torch.dtype, near: dict[str, float]) -> None:
    plain, x = network(dtype), given(dtype)
    expected = plain(x)
    fast = prepack(copy.deepcopy(plain))
    linear = "linear" if available("linear", dtype, "linear") else "onednn_linear"
    assert orders(fast) == ["onednn_conv", "onednn_conv", linear, linear, linear]
    torch.testing.assert_close(fast(x), expected, **near)
    for memory in (torch.channels_last, torch.contiguous_format):
        torch.testing.assert_close(fast(x.contiguous(memory_format=memory)), expected, **near)


@pytest.mark.parametrize(("dtype", "near"), PRECISIONS)
@torch.no_grad()
def test_residuals_are_added(dtype: torch.dtype, near: dict[str, float]) -> None:
    for layer, x, residual in (
        (Linear(12, 7), torch.randn(2, 9, 12), torch.randn(2, 9, 7)),
        (Linear(12, 7, bias=False), torch.randn(4, 12), torch.randn(7, 4).T),
        (Conv2d(5, 6, 3, padding=1), torch.randn(2, 5, 8, 6), torch.randn(2, 6, 8, 6)),
        (Conv2d(5, 6, 1), torch.randn(2, 5, 8, 6).to(memory_format=torch.channels_last), torch.randn(2, 6, 8, 6)),
    ):
        add = linear_add if isinstance(layer, Linear) else conv_add
        layer, x, residual = layer.to(dtype).requires_grad_(False), x.to(dtype), residual.to(dtype)
        expected, before = layer(x) + residual, residual.clone()
        torch.testing.assert_close(add(layer, x, residual), expected, **near)
        fast = prepack(nn.Sequential(layer, Conv2d(1, 1, 3, dtype=dtype).requires_grad_(False)))[0]
        assert is_packed(fast)
        torch.testing.assert_close(add(fast, x, residual), expected, **near)
        assert torch.equal(residual, before), "the residual stays as it is"
        with torch.enable_grad():
            torch.testing.assert_close(add(fast, x, residual), expected, **near)
        assert add(fast, x, residual.double()).dtype == torch.float64


def test_weights_beside_a_packed_convolution_are_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = network(), given()
    monkeypatch.setattr("gradina.runtime.prepack.LARGE", 24 * 24 * 9)
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    mixed = prepack(copy.deepcopy(plain))
    assert orders(mixed)[:2] == [None, "onednn_conv"]
    assert mixed[0](x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mixed(x), plain(x), **FP32)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in mixed.state_dict().items())
    monkeypatch.setattr("gradina.runtime.prepack.LARGE", 2**30)
    assert prepack(copy.deepcopy(plain))[0](x).is_contiguous(), "else nothing changes"


def test_state_dicts_are_plain() -> None:
    plain = network()
    saved = prepack(copy.deepcopy(plain)).state_dict()
    assert list(saved) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(saved[name], value), name
        assert type(saved[name]) is Tensor
        assert saved[name].is_contiguous()


def test_restored_networks_are_what_they_were() -> None:
    plain = network()
    fast = prepack(copy.deepcopy(plain))
    assert is_packed(fast)
    back = restore(fast)
    assert back is fast
    assert not is_packed(back)
    assert all(type(p) is nn.Parameter and not p.requires_grad for p in back.parameters())
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), plain.parameters(), strict=True))


def test_moved_loaded_and_copied_networks_are_plain() -> None:
    plain, x = network(), given()
    expected = plain(x)
    wide = prepack(network()).to(torch.float64)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    assert not is_packed(wide)
    torch.testing.assert_close(wide(x.double()).float(), expected)
    loaded = prepack(network().apply(lambda m: [p.zero_() for p in m.parameters(recurse=False)]))
    loaded.load_state_dict(plain.state_dict())
    torch.testing.assert_close(loaded(x), expected, **FP32)
    fast = prepack(network())
    other = copy.deepcopy(fast)
    assert torch.equal(other(x), expected)
    assert is_packed(fast), "the original stays prepacked"


def test_prepacking_again_packs_what_has_become_plain() -> None:
    fast, x = prepack(network()), given()
    expected, names = fast(x), orders(fast)
    weight = fast[6].weight
    fast[0].weight = nn.Parameter(fast[0].weight.detach(), requires_grad=False)
    assert orders(prepack(fast)) == names
    assert torch.equal(fast(x), expected)
    assert fast[6].weight is weight


def test_gradients_go_through() -> None:
    plain, x = network(), given().requires_grad_()
    plain(x).square().sum().backward()
    expected, x.grad = x.grad, None
    prepack(plain)(x).square().sum().backward()
    assert is_packed(plain)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("native", ["0", "1"])
def test_small_convolutions_stay_plain_where_norms_are_slow(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradina.runtime.prepack.LARGE", 4 * 4 * 9)
    monkeypatch.setenv("GRADINA_NATIVE", native)
    some = nn.Sequential(Conv2d(4, 4, 3), Conv2d(4, 3, 3), Linear(2, 2)).requires_grad_(False)
    small = "onednn_conv" if available("group_norm", torch.float32, LAST) else None
    assert orders(prepack(some)) == ["onednn_conv", small, "onednn_linear"]


@pytest.mark.parametrize(
    ("dtype", "packed"),
    [(torch.float32, (1, 0, 0)), pytest.param(torch.bfloat16, (1, 1, 0), marks=packs_bf16)],
)
def test_what_onednn_is_slow_at_is_left_to_pytorch(dtype: torch.dtype, packed: tuple[int, ...]) -> None:
    layers = (Conv2d(4, out, 3, stride=2, dtype=dtype) for out in (256, 192, 288))
    some = prepack(nn.Sequential(*layers).requires_grad_(False))
    assert orders(some) == ["onednn_conv" if each else None for each in packed]


def same_in_all_phases(monkeypatch: pytest.MonkeyPatch, same: Callable[[], None]) -> None:
    """By the kernel, under a tracer, without kernels, and in training."""
    same()
    with monkeypatch.context() as patch:
        patch.setattr("gradina.kernels.dispatch.is_traced", lambda x: True)
        same()
    with monkeypatch.context() as patch:
        patch.setenv("GRADINA_NATIVE", "0")
        same()
        with torch.enable_grad():
            same()


@pytest.mark.parametrize(("dtype", "near"), PRECISIONS)
@torch.no_grad()
def test_3x3_convolutions_are_computed_in_c(
    dtype: torch.dtype, near: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not available("conv2d", dtype, "conv3x3"):
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    torch.manual_seed(0)
    plain, upsample = Conv2d(16, 24, 3, padding=1).to(dtype), Upsample(16).to(dtype)
    layers = prepack(copy.deepcopy(nn.Sequential(plain, upsample)).requires_grad_(False))
    fast, fast_upsample = layers
    assert orders(layers) == ["conv3x3", "conv3x3"]
    x, residual = torch.randn(2, 16, 9, 6).to(dtype), torch.randn(2, 24, 9, 6).to(dtype)

    def same() -> None:
        torch.testing.assert_close(fast(x), plain(x), **near)
        torch.testing.assert_close(conv_add(fast, x, residual), plain(x) + residual, **near)
        torch.testing.assert_close(fast_upsample(x), upsample(x), **near)

    same_in_all_phases(monkeypatch, same)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert fast(torch.zeros(2, 16, 9, 6, dtype=dtype)).shape == (2, 24, 9, 6)


@pytest.fixture
def native_fp32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rows for linear layers with AMX hold for fp32, so that CPUs without it can test them."""
    if not available("linear_geglu", torch.float32, "geglu"):
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    rows = [replace(row, dtypes=dispatch.FP32, feature=None) for row in dispatch.TABLE if row.layout == "linear"]
    assert len(rows) == 2
    monkeypatch.setattr(dispatch, "TABLE", (*rows, *dispatch.TABLE))
    dispatch.kernels_for.cache_clear()
    yield
    dispatch.kernels_for.cache_clear()


@pytest.mark.usefixtures("native_fp32")
def test_linear_layers_are_computed_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available("linear", torch.float32, "linear")
    test_linear_layers_are_prepacked(torch.float32, FP32, monkeypatch)


@pytest.mark.parametrize(("dtype", "near"), PRECISIONS)
@torch.no_grad()
def test_linear_layers_are_prepacked(
    dtype: torch.dtype, near: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Linear(40, 24), Conv2d(40, 24, 1, bias=False), GatedLinear(40, 48), Conv2d(9, 9, 3))
    plain = plain.to(dtype).requires_grad_(False)
    fast = prepack(copy.deepcopy(plain))
    linear = "linear" if available("linear", dtype, "linear") else "onednn_linear"
    gated = "geglu" if available("linear_geglu", dtype, "geglu") else linear
    assert orders(fast) == [linear, linear, gated, "onednn_conv"]
    x, maps, residual = (torch.randn(shape).to(dtype) for shape in ((2, 9, 40), (2, 40, 5, 3), (2, 9, 24)))

    def same() -> None:
        torch.testing.assert_close(fast[0](x), plain[0](x), **near)
        torch.testing.assert_close(linear_add(fast[0], x, residual), plain[0](x) + residual, **near)
        for each in (maps, maps.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(fast[1](each), plain[1](each), **near)
        torch.testing.assert_close(fast[2](x), plain[2](x), **near)
        torch.testing.assert_close(linear_geglu(fast[2], x), geglu(plain[2](x)), **near)
        assert torch.equal(linear_geglu(plain[2], x), geglu(plain[2](x)))

    same_in_all_phases(monkeypatch, same)
    with torch.enable_grad():
        x.requires_grad_()
        same()
    for name, value in plain.state_dict().items():
        assert torch.equal(fast.state_dict()[name], value), name


def test_what_is_trained_or_of_another_dtype_stays_plain() -> None:
    assert not is_packed(prepack(network().requires_grad_()))
    assert not is_packed(prepack(network(torch.float16)))
    odd = nn.Sequential(Conv2d(4, 4, 3, padding="same"), Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert orders(prepack(odd.requires_grad_(False))) == [None, None]


@pytest.fixture(scope="module")
def unet() -> UNet:
    config = UNetConfig(
        widths=(32, 64), attention=(True, True), heads=(2, 2), blocks=1, context=24, groups=8, size=12
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(config)


def gradients(network: UNet, autocast: bool = False) -> Tensor:
    """Of all its parameters."""
    key = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 12, 12), (3, 7, 24), (3, 4, 12, 12))
    x, cond, target = (torch.randn(shape, generator=key).to(network.conv_in.weight.dtype) for shape in shapes)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = (network(x, torch.tensor([3, 500, 990]), cond).float() - target.float()).square().mean()
    found = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([each.flatten().double() for each in found])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_channels_last_network_has_the_same_gradients(unet: UNet, dtype: torch.dtype, tolerance: float) -> None:
    """Compared with PyTorch's in double precision."""
    got = gradients(channels_last(copy.deepcopy(unet), dtype), autocast=dtype == torch.bfloat16)
    expected = gradients(copy.deepcopy(unet).double())
    assert (got - expected).norm() < tolerance * expected.norm()


def test_training_is_channels_last_where_norms_gain(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_last(network: nn.Module) -> bool:
        return all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4)

    for dtype in DTYPES:
        assert is_last(channels_last(copy.deepcopy(unet), dtype)) == available("group_norm", dtype, LAST)
    assert not is_last(channels_last(nn.Sequential(Conv2d(4, 4, 3)), torch.float32)), "it has no norms"
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    assert not is_last(channels_last(copy.deepcopy(unet), torch.float32))
