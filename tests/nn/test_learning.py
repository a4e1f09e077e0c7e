"""Native training: each backward against autograd in double precision, and that of a whole network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.bindings import flushed, own_gate, own_norm, own_softmax
from gradina.models.unet import UNet, UNetConfig
from gradina.nn import conv2d
from gradina.nn.attention import plain
from gradina.nn.conv2d import Conv2d, Three, channels_last
from gradina.nn.geglu import Gated, gated
from gradina.nn.norm import Normalised, normalised

DTYPES = (torch.float32, torch.bfloat16)
NEAR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the norm of what is exact
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))

Function = Callable[..., Tensor]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def grads(function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What comes out, and the slope of each input if that of what comes out is drawn."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    back = drawn(*out.shape, dtype=torch.float64, seed=9).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, back)]


def same(function: Function, exact: Function, *inputs: Tensor, near: float) -> None:
    ours, theirs = grads(function, inputs), grads(exact, [x.double() for x in inputs])
    for i, (got, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert got.shape == expected.shape
        far = (got.double() - expected).norm() / expected.norm()
        assert far <= near, f"number {i}: {far:.1e}"


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def is_own(dtype: torch.dtype) -> bool:
    return all(own(dtype) is not None for own in (own_gate, own_norm, own_softmax))


@dtypes
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 3, 1), (3, 40, 5, 7), (2, 24, 19, 31), (4, 96, 16, 16)])
def test_norms(shape: tuple[int, ...], shifted: bool, active: bool, dtype: torch.dtype) -> None:
    norm, b, c = nn.GroupNorm(4, shape[1]), *shape[:2]
    x = 1 + 2 * drawn(*shape, dtype=dtype)
    inputs = [x, 1 + drawn(c), drawn(c, seed=1), *([drawn(b, c, dtype=dtype)] if shifted else [])]

    def ours(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        del norm.weight, norm.bias
        norm.weight, norm.bias = weight, bias  # type: ignore[assignment]
        out = normalised(norm, last(x), shift, active)
        assert type(out.grad_fn).__name__ == (f"{Normalised.__name__}Backward" if is_own(dtype) else out.grad_fn.name())
        return out

    def exact(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        h = F.group_norm(x if shift is None else x + shift[:, :, None, None], 4, weight, bias, norm.eps)
        return F.silu(h) if active else h

    same(ours, exact, *inputs, near=NEAR[dtype])


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 2 * 37), (4, 2 * 64)])
def test_gates(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def exact(both: Tensor) -> Tensor:
        h, gate = both.chunk(2, dim=-1)
        return h * F.gelu(gate)

    same(gated, exact, 3 * drawn(*shape, dtype=dtype), near=NEAR[dtype])
    assert not is_own(dtype) or isinstance(
        gated(drawn(*shape, dtype=dtype).requires_grad_()).grad_fn, Gated._backward_cls
    )


@dtypes
def test_far_gates_are_open_or_shut(dtype: torch.dtype) -> None:
    gates = torch.tensor([-1e4, -30.0, -13.2, 0.0, 13.2, 30.0, 1e4], dtype=dtype)
    both = torch.cat([torch.full_like(gates, 2.0), gates]).requires_grad_()
    (grad_both,) = torch.autograd.grad(gated(both).sum(), both)
    h, gate = grad_both.chunk(2)
    assert torch.allclose(h, gates.clamp(min=0), rtol=0, atol=1e-30)
    assert torch.allclose(gate, torch.tensor([0.0, 0, 0, 1, 2, 2, 2], dtype=dtype), atol=1e-6)


@dtypes
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 4), (5, 24, 32), (64, 64, 32), (33, 77, 40), (16, 7, 8)])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_attention(n: int, m: int, d: int, scale: float, dtype: torch.dtype) -> None:
    q, k, v = (drawn(2, 3, size, d, dtype=dtype, seed=i) for i, size in enumerate((n, m, m)))
    many = 1 if dtype == torch.float32 else 4  # scores, too, are rounded
    exact = F.scaled_dot_product_attention
    ours, theirs = grads(plain, (q * scale, k, v)), grads(exact, [x.double() for x in (q * scale, k, v)])
    for got, expected in zip(ours, theirs, strict=True):
        near = many * NEAR[dtype] * scale * max(expected.norm().item(), expected.numel() ** 0.5 / 10)
        assert (got.double() - expected).norm() <= near


def test_what_has_no_share_has_none() -> None:
    """Beside scores that are larger by far, others are nothing, and of no slope."""
    q, k = torch.tensor([[[[1.0]]]]), torch.tensor([[[[0.0], [-80.0], [-1e4]]]])
    v = torch.eye(3)[None, None].requires_grad_()
    q.requires_grad_()
    out = plain(q, k, v)
    assert torch.allclose(out, torch.tensor([1.0, 0, 0]), rtol=0, atol=1e-30)
    out.sum().backward()
    assert q.grad is not None
    assert abs(q.grad.item()) < 1e-30


@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 5, 17, 23])
def test_what_is_no_number_stays_none(at: int, bad: float, dtype: torch.dtype) -> None:
    """Or a run that has diverged would go on. Others' rows are as they were."""
    x = drawn(3, 24, dtype=dtype)
    x[1, at] = bad
    q, one = x[None, None].requires_grad_(), torch.eye(24, dtype=dtype)[None, None]
    probs = plain(q, one, one)[0, 0]
    assert probs.isnan().all(-1).tolist() == [False, True, False]
    (grad_output,) = torch.autograd.grad(probs.sum(), q)
    assert grad_output[0, 0].isnan().any(-1).tolist() == [False, True, False]
    both = drawn(3, 48, dtype=dtype)
    both[1, 24 + at] = float("nan")
    grad_both = grads(gated, [both])
    assert all(one.isnan().any(-1).tolist() == [False, True, False] for one in grad_both)


@dtypes
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "shape"),
    [(3, (2, 16, 1, 1)), (3, (3, 17, 5, 3)), (3, (2, 32, 8, 8)), (3, (2, 19, 11, 13)), (1, (2, 33, 6, 5))],
)
def test_convolutions(
    size: int, shape: tuple[int, ...], bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv2d, "MUCH", 0)
    layer = Conv2d(shape[1], 20, size, padding=size // 2, bias=bias)
    few = dtype == torch.float32 or shape[2] * shape[3] <= 64
    inputs = [drawn(*shape), drawn(20, shape[1], size, size, seed=1), *([drawn(20)] if bias else [])]

    def ours(x: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        del layer.weight, layer.bias
        layer.weight, layer.bias = last(weight), shift
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(last(x).to(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert isinstance(out.grad_fn, Three._backward_cls) == (size == 3 and few and is_own(dtype))
        return out.float()

    def exact(x: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, shift, padding=size // 2)

    same(ours, exact, *inputs, near=NEAR[dtype])


def test_of_what_is_fixed_no_slopes_are_computed() -> None:
    """Of a LoRA's base, only the slopes of what went in; of a first layer, only those of its weights."""
    layer, x = Conv2d(16, 16, 3, padding=1).bfloat16(), last(drawn(1, 16, 4, 4, dtype=torch.bfloat16))
    layer.requires_grad_(False)
    (grad_x,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    layer.requires_grad_(True)
    grad_weight, grad_bias = torch.autograd.grad(layer(x.detach()).sum(), [layer.weight, layer.bias])
    assert grad_x.shape == x.shape
    assert grad_weight.shape == (16, 16, 3, 3)
    assert grad_bias.tolist() == [16.0] * 16


@dtypes
def test_little_work_in_single_precision_is_left_to_torch(dtype: torch.dtype) -> None:
    layer = Conv2d(16, 16, 3, padding=1)
    out = layer.to(dtype)(last(drawn(1, 16, 4, 4, dtype=dtype)))
    assert isinstance(out.grad_fn, Three._backward_cls) == (dtype == torch.bfloat16 and is_own(dtype))


def test_other_convolutions_are_torchs() -> None:
    x = last(drawn(1, 4, 6, 6, dtype=torch.bfloat16)).requires_grad_()
    for how in (
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect", "padding": 1},
        {"padding": 2},
    ):
        layer = Conv2d(4, 4, 3, **how).bfloat16()
        plain = nn.Conv2d(4, 4, 3, **how).bfloat16()
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), plain(x)), how


@pytest.fixture(scope="module")
def unet() -> UNet:
    config = UNetConfig(
        widths=(32, 64), attention=(True, True), heads=(2, 2), blocks=1, context=24, groups=8, size=12
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(config)


def learnt(network: UNet, autocast: bool = False) -> Tensor:
    """The slopes of all its weights."""
    kind = network.conv_in.weight.dtype
    x, cond, aim = (drawn(*shape, dtype=kind) for shape in ((3, 4, 12, 12), (3, 7, 24), (3, 4, 12, 12)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = (network(x, torch.tensor([3, 500, 990]), cond).float() - aim.float()).square().mean()
    grads = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([grad_output.flatten().double() for grad_output in grads])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_network_learns_the_same(unet: UNet, dtype: torch.dtype, near: float) -> None:
    """Beside the same in double precision, as PyTorch has it."""
    got = learnt(channels_last(copy.deepcopy(unet), dtype), autocast=dtype == torch.bfloat16)
    expected = learnt(copy.deepcopy(unet).double())
    assert (got - expected).norm() < near * expected.norm()


def test_channels_are_last_where_norms_gain(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def lies_last(network: nn.Module) -> bool:
        return all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4)

    for dtype in DTYPES:
        assert lies_last(channels_last(copy.deepcopy(unet), dtype)) == (own_norm(dtype) is not None)
    assert not lies_last(channels_last(nn.Sequential(Conv2d(4, 4, 3)), torch.float32)), "there are no norms"
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    assert not lies_last(channels_last(copy.deepcopy(unet), torch.float32))


def test_slopes_of_slopes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_own(torch.float32):
        pytest.skip("needs our kernels")
    x = drawn(3, 4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"gradients of gradients .* GRADINA_NATIVE=0"):
        torch.autograd.grad(gated(x).sum(), x, create_graph=True)
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    (grad_output,) = torch.autograd.grad(gated(x).sum(), x, create_graph=True)
    assert grad_output.requires_grad


def test_numbers_too_small_to_be_normal_are_nothing_meanwhile() -> None:
    if not is_own(torch.float32):
        pytest.skip("needs our kernels")
    small = torch.full((2**21,), 1e-39)  # enough for all threads
    with flushed():
        assert not (small * 1).any()
        with pytest.raises(ValueError, match="lost"), flushed():
            raise ValueError("lost")
        assert not (small * 1).any(), "as it was before"
    assert (small * 1).all()
