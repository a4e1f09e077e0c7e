"""Packed layers compute what plain ones do, and towards all others are plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradina.kernels.bindings import own_norm
from gradina.kernels.gemm import own_convolution, own_product
from gradina.kernels.prepack import packed, unpacked
from gradina.kernels.prepacked import (
    PackedConv2d,
    PackedGate,
    PackedLinear,
    PackedPointwise,
    PackedThree,
    doubled,
    gated_by,
    grown,
    plus,
)
from gradina.nn.geglu import Gate, gated


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(5, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 24, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(24, 9, 1), nn.GroupNorm(3, 9), nn.Flatten(2), nn.Linear(12, 7), nn.Linear(7, 33, bias=False),
    )  # fmt: skip
    return nn.Sequential(*layers).to(dtype).requires_grad_(False).eval()


def given(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, 8, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are packed from 0 weights on."""
    monkeypatch.setattr("gradina.kernels.prepack.LARGE", 0)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_they_compute_the_same(dtype: torch.dtype, near: float) -> None:
    plain, x = network(dtype), given(dtype)
    expected = plain(x)
    fast = packed(copy.deepcopy(plain))
    kinds = [type(m) for m in fast if hasattr(m, "stride") or hasattr(m, "in_features")]
    assert kinds == [PackedConv2d, PackedConv2d, PackedPointwise, PackedLinear, PackedLinear]
    torch.testing.assert_close(fast(x), expected, rtol=near, atol=near)
    for memory in (torch.channels_last, torch.contiguous_format):
        torch.testing.assert_close(fast(x.contiguous(memory_format=memory)), expected, rtol=near, atol=near)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_what_is_added_is_added_at_once(dtype: torch.dtype, near: float) -> None:
    for layer, x, beside in (
        (nn.Linear(12, 7), torch.randn(2, 9, 12), torch.randn(2, 9, 7)),
        (nn.Linear(12, 7, bias=False), torch.randn(4, 12), torch.randn(7, 4).T),
        (nn.Conv2d(5, 6, 3, padding=1), torch.randn(2, 5, 8, 6), torch.randn(2, 6, 8, 6)),
        (nn.Conv2d(5, 6, 1), torch.randn(2, 5, 8, 6).to(memory_format=torch.channels_last), torch.randn(2, 6, 8, 6)),
    ):
        layer, x, beside = layer.to(dtype).requires_grad_(False), x.to(dtype), beside.to(dtype)
        expected, kept = layer(x) + beside, beside.clone()
        torch.testing.assert_close(plus(layer, x, beside), expected, rtol=near, atol=near)
        fast = packed(nn.Sequential(layer, nn.Conv2d(1, 1, 3, dtype=dtype).requires_grad_(False)))[0]
        assert isinstance(fast, PackedLinear | PackedConv2d | PackedPointwise)
        torch.testing.assert_close(plus(fast, x, beside), expected, rtol=near, atol=near)
        assert torch.equal(beside, kept), "what is beside stays as it is"
        with torch.enable_grad():
            torch.testing.assert_close(plus(fast, x, beside), expected, rtol=near, atol=near)
        assert plus(fast, x, beside.double()).dtype == torch.float64


def test_beside_a_packed_convolution_all_have_their_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = network(), given()
    monkeypatch.setattr("gradina.kernels.prepack.LARGE", 24 * 24 * 9)
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    mixed = packed(copy.deepcopy(plain))
    small, large = mixed[0], mixed[2]
    assert (type(small), type(large)) == (nn.Conv2d, PackedConv2d)
    assert small(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mixed(x), plain(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in mixed.state_dict().items())
    monkeypatch.setattr("gradina.kernels.prepack.LARGE", 2**30)
    assert packed(copy.deepcopy(plain))[0](x).is_contiguous(), "else nothing changes"


def test_saved_they_are_plain() -> None:
    plain = network()
    fast = packed(copy.deepcopy(plain))
    saved = fast.state_dict()
    assert list(saved) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(saved[name], value), name
        assert not saved[name].is_mkldnn
        assert saved[name].is_contiguous()


def test_unpacked_they_are_what_they_were() -> None:
    plain = network()
    back = unpacked(packed(copy.deepcopy(plain)))
    assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), plain.parameters(), strict=True))


def test_moved_loaded_and_copied_they_are_plain() -> None:
    plain, x = network(), given()
    expected = plain(x)
    wide = packed(network()).to(torch.float64)
    assert next(wide.parameters()).dtype == torch.float64
    torch.testing.assert_close(wide(x.double()).float(), expected)
    loaded = packed(network().apply(lambda m: [p.zero_() for p in m.parameters(recurse=False)]))
    loaded.load_state_dict(plain.state_dict())
    assert torch.equal(loaded(x), expected)
    fast = packed(network())
    other = copy.deepcopy(fast)
    torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
    assert any(isinstance(m, PackedLinear) for m in fast), "the original stays packed"


def test_gradients_go_through() -> None:
    plain, x = network(), given().requires_grad_()
    plain(x).square().sum().backward()
    expected, x.grad = x.grad, None
    packed(plain)(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("native", ["0", "1"])
def test_small_convolutions_stay_plain_where_norms_are_slow(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradina.kernels.prepack.LARGE", 4 * 4 * 9)
    monkeypatch.setenv("GRADINA_NATIVE", native)
    some = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 3), nn.Linear(2, 2)).requires_grad_(False)
    small = nn.Conv2d if own_norm(torch.float32) is None else PackedConv2d
    assert [type(m) for m in packed(some)] == [PackedConv2d, small, PackedLinear]


@pytest.mark.parametrize(("dtype", "kinds"), [(torch.float32, (1, 0, 0)), (torch.bfloat16, (1, 1, 0))])
def test_what_onednn_is_slow_at_is_left_to_pytorch(dtype: torch.dtype, kinds: tuple[int, ...]) -> None:
    layers = (nn.Conv2d(4, out, 3, stride=2, dtype=dtype) for out in (256, 192, 288))
    some = packed(nn.Sequential(*layers).requires_grad_(False))
    assert [type(m) for m in some] == [PackedConv2d if kind else nn.Conv2d for kind in kinds]


def three() -> tuple[nn.Module, PackedThree]:
    """A 3x3 convolution, and the same packed for our own."""
    if own_convolution(torch.float32) is None:
        pytest.skip("needs a C compiler and a processor with AVX-512")
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 24, 3, padding=1).requires_grad_(False)
    fast = packed(nn.Sequential(copy.deepcopy(plain)))[0]
    assert isinstance(fast, PackedThree)
    return plain, fast


@torch.no_grad()
def test_threes_are_multiplied_by_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = three()
    x, beside = torch.randn(2, 16, 9, 6), torch.randn(2, 24, 9, 6)
    near = {"rtol": 1e-5, "atol": 1e-5}

    def same() -> None:
        torch.testing.assert_close(fast(x), plain(x), **near)
        torch.testing.assert_close(plus(fast, x, beside), plain(x) + beside, **near)
        torch.testing.assert_close(grown(fast, x), plain(doubled(x)), **near)

    same()
    monkeypatch.setattr("gradina.kernels.prepacked.is_traced", lambda x: True)
    same()
    monkeypatch.undo()
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    same()


def test_towards_others_they_too_are_plain() -> None:
    plain, fast = three()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in fast.state_dict().items())
    x = torch.randn(1, 16, 5, 5, requires_grad=True)
    expected = torch.autograd.grad(plain(x).square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(fast(x).square().sum(), x)[0], expected)
    assert type(unpacked(nn.Sequential(fast))[0]) is nn.Conv2d
    assert torch.equal(fast.weight, plain.weight)


def rows() -> tuple[nn.Sequential, nn.Sequential]:
    """Layers to whole rows of bfloat16, and the same packed for our own."""
    if own_product(torch.bfloat16) is None:
        pytest.skip("needs a C compiler and a processor with AMX")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(40, 24), nn.Conv2d(40, 24, 1, bias=False), Gate(40, 48), nn.Conv2d(9, 9, 3))
    plain = plain.to(torch.bfloat16).requires_grad_(False)
    return plain, packed(copy.deepcopy(plain))


@torch.no_grad()
def test_rows_are_multiplied_by_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = rows()
    assert [type(m) for m in fast] == [PackedLinear, PackedPointwise, PackedGate, PackedConv2d]
    x, places, beside = (torch.randn(shape).bfloat16() for shape in ((2, 9, 40), (2, 40, 5, 3), (2, 9, 24)))
    near = {"rtol": 2e-2, "atol": 2e-2}

    def same() -> None:
        torch.testing.assert_close(fast[0](x), plain[0](x), **near)
        torch.testing.assert_close(plus(fast[0], x, beside), plain[0](x) + beside, **near)
        for given in (places, places.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(fast[1](given), plain[1](given), **near)
        torch.testing.assert_close(fast[2](x), plain[2](x), **near)
        torch.testing.assert_close(gated_by(fast[2], x), gated(plain[2](x)), **near)
        assert torch.equal(gated_by(plain[2], x), gated(plain[2](x)))

    same()
    monkeypatch.setattr("gradina.kernels.prepacked.is_traced", lambda x: True)
    same()
    monkeypatch.undo()
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    same()
    with torch.enable_grad():
        x.requires_grad_()
        same()


def test_towards_others_rows_too_are_plain() -> None:
    plain, fast = rows()
    for name, value in plain.state_dict().items():
        saved = fast.state_dict()[name]
        assert torch.equal(saved, value), name
        assert saved.shape == value.shape
    back = unpacked(fast)
    assert [type(m) for m in back] == [type(m) for m in plain], "a gate stays one"


@torch.no_grad()
def test_what_stands_for_a_tensor_is_convolved_by_pytorch() -> None:
    _, fast = three()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert fast(torch.zeros(2, 16, 9, 6)).shape == (2, 24, 9, 6)


def test_what_is_no_padded_three_is_not_for_our_own() -> None:
    three()
    others = (
        nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 3, padding=1, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1),
        nn.Conv2d(16, 16, 5, padding=1), nn.Conv2d(16, 16, 3, padding=2),
    )  # fmt: skip
    assert all(type(m) is PackedConv2d for m in packed(nn.Sequential(*others).requires_grad_(False)))


def test_what_learns_or_cannot_be_packed_stays_plain() -> None:
    assert not any(isinstance(m, PackedLinear | PackedConv2d) for m in packed(network().requires_grad_()).modules())
    assert not any(isinstance(m, PackedLinear | PackedConv2d) for m in packed(network(torch.float16)).modules())
    odd = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    packed(odd.requires_grad_(False))
    assert [type(m) for m in odd] == [nn.Conv2d, nn.Conv2d]
