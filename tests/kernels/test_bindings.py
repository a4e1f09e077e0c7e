"""What is computed in C is what PyTorch computes, on every shape; and without it nothing is missed."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from gradina.kernels import build as kernel_module
from gradina.kernels.bindings import Attend, compiled, own_attention, own_gate, own_norm
from gradina.kernels.build import AMX, BF16, COMMON, KERNELS, Kernel, kernel
from gradina.kernels.gemm import Convolution, Product, ordinary, ordinary_rows, own_convolution, own_product
from gradina.nn.attention import attention
from gradina.nn.norm import LayerNorm, normalised, normaliser

TIMES = {torch.float32: 4.0, torch.bfloat16: 1.5}  # the error of PyTorch's way
WAYS = {"tiles": KERNELS[0], "pairs": KERNELS[1], "float": KERNELS[3]}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
SHAPES = (  # batch, heads, queries, keys, width of a head
    (1, 1, 1, 1, 8), (1, 1, 1, 4096, 64), (2, 3, 77, 77, 64), (1, 2, 49, 16, 40), (1, 2, 130, 257, 33),
    (2, 2, 256, 256, 160), (1, 2, 100, 333, 80), (1, 1, 95, 513, 512), (3, 1, 48, 511, 1), (1, 8, 1024, 77, 80),
    (1, 1, 4096, 4096, 40),
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    compiled.cache_clear()
    kernel_module.library.cache_clear()


def own(way: Kernel) -> Attend:
    found = compiled(way) if way.needs in kernel_module._processor() else None
    if found is None:
        pytest.skip(f"needs a C compiler and a processor with {way.needs}")
    return found


def test_each_way_is_compiled_in_its_own() -> None:
    assert [way.flags for way in WAYS.values()] == [AMX, BF16, COMMON]
    assert [way.dtype for way in WAYS.values()] == [torch.bfloat16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [("avx2", [None, None]), ("avx512f", [None, 3]), ("avx512f avx512_bf16", [1, 3]),
     ("avx512f avx512_bf16 amx_bf16", [0, 2])],
)  # fmt: skip
def test_the_processor_decides(flags: str, chosen: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "_processor", lambda: frozenset(flags.split()))
    rows = [None if row is None else KERNELS[row] for row in chosen]
    assert [kernel(torch.bfloat16), kernel(torch.float32)] == rows
    assert kernel(torch.float16) is None


def test_what_is_short_or_wide_is_left_to_pytorch() -> None:
    row = Kernel(torch.float32, "", (), work=64 * 64 * 8, queries=64, width=16)
    for n, m, d, suited in ((64, 64, 8, True), (63, 99, 8, False), (64, 63, 8, False), (64, 64, 17, False)):
        assert row.suits(torch.empty(1, 2, n, d), torch.empty(1, 2, m, d)) == suited, (n, m, d)


def given(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    """q, k and v as a layer has them: heads behind the tokens in memory."""
    b, heads, n, m, d = shape
    key = torch.Generator().manual_seed(sum(shape))
    return tuple((scale * torch.randn(b, x, heads, d, generator=key)).to(dtype).transpose(1, 2) for x in (n, m, m))


def error(got: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Root mean square, against 64 bits."""
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    return (got.double() - exact).square().mean().sqrt().item()


@ways
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_it_is_as_exact_as_pytorch(shape: tuple[int, ...], way: Kernel, scale: float) -> None:
    dtype = way.dtype
    q, k, v = given(shape, dtype, scale)
    got = own(way)(q, k, v)
    assert got.shape == q.shape
    assert got.dtype == dtype
    theirs = error(F.scaled_dot_product_attention(q, k, v), q, k, v)
    assert error(got, q, k, v) <= TIMES[dtype] * theirs + torch.finfo(dtype).eps * scale / 2


@ways
def test_any_layout_will_do(way: Kernel) -> None:
    q, k, v = given((2, 3, 50, 70, 24), way.dtype)
    attend = own(way)
    expected = attend(q, k, v)
    assert torch.equal(attend(q.contiguous(), k.contiguous(), v.contiguous()), expected)
    assert torch.equal(attend(q.mT.contiguous().mT, k, v.mT.contiguous().mT), expected)
    one = k[:1].expand(2, -1, -1, -1)
    assert torch.equal(attend(q, one, v), attend(q, one.contiguous(), v))


@ways
def test_threads_and_batches_do_not_matter(way: Kernel) -> None:
    q, k, v = given((2, 2, 300, 300, 40), way.dtype)
    attend, threads = own(way), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attend(q, k, v)
        torch.set_num_threads(3)
        assert torch.equal(attend(q, k, v), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(attend(q[1:], k[1:], v[1:]), alone[1:])


@ways
def test_numbers_that_are_none_stay_so(way: Kernel) -> None:
    q, k, v = given((1, 1, 64, 64, 16), way.dtype)
    v[0, 0, 3, 5] = float("nan")
    got = own(way)(q, k, v)
    assert got[0, 0, :, 5].isnan().all()
    assert not got[0, 0, :, :5].isnan().any()


@ways
def test_only_small_scores_need_no_maximum(way: Kernel) -> None:
    """Some queries far out, keys near to what is allowed, values that leave no room for sums: all as exact."""
    q, k, v = given((1, 2, 200, 300, 40), way.dtype)
    attend, eps = own(way), torch.finfo(way.dtype).eps
    far = q.clone()
    far[0, 0, 70:75] *= 300
    cases = [(far, k, v), (q, k, v * 1e37), (q, k, v * 0), (q * 0, k * 1e30, v)]
    cases += [(q * scale, k * scale, v) for scale in (3.0, 3.4, 3.8, 5.0)]
    for some in cases:
        exact = F.scaled_dot_product_attention(*(x.double() for x in some))
        got, theirs = attend(*some), F.scaled_dot_product_attention(*some)
        most = exact.abs().max().item()
        limit = TIMES[way.dtype] * (theirs.double() - exact).abs().max().item() + eps * most
        assert (got.double() - exact).abs().max().item() <= limit


@ways
@pytest.mark.parametrize("which", [0, 1])
def test_queries_and_keys_that_are_no_numbers(way: Kernel, which: int) -> None:
    given_ = list(given((1, 1, 64, 80, 16), way.dtype))
    given_[which][0, 0, 3, 5] = float("nan")
    got = own(way)(*given_)
    if which == 0:
        assert got[0, 0, 3].isnan().all()
        assert not got[0, 0, torch.arange(64) != 3].isnan().any()
    else:
        assert got.isnan().all()


def test_long_sequences_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    row = Kernel(torch.float32, "", (), work=2**22, queries=1, width=256)
    monkeypatch.setattr("gradina.nn.attention.kernel", lambda dtype: row)
    monkeypatch.setattr("gradina.nn.attention.compiled", lambda row: asked.append(row.dtype))
    long, short = given((1, 1, 1024, 1024, 40), torch.float32), given((1, 1, 64, 64, 40), torch.float32)
    with torch.no_grad():
        attention(*short)
        attention(*long, causal=True)
        assert asked == []
        attention(*long)
        assert asked == [torch.float32]
    attention(*(x.requires_grad_() for x in long)).sum().backward()  # learning, on the way there alone
    assert asked == [torch.float32, torch.float32]
    assert all(x.grad is not None for x in long)


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(WAYS["float"])
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    forget()
    assert own_attention(torch.float32) is not None
    assert [p.suffix for p in (tmp_path / "native").iterdir()] == [".so"]
    forget()
    monkeypatch.setattr(subprocess, "run", None)
    assert own_attention(torch.float32) is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_nothing_is_missed(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    assert own_attention(torch.float32) is None
    assert not list(tmp_path.rglob("*.so"))
    q, k, v = given((1, 1, 1024, 1024, 40), torch.float32)
    with torch.no_grad():
        assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_it_can_be_switched_off_and_knows_its_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_attention(torch.float16) is None
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    assert own_attention(torch.float32) is None
    assert own_gate(torch.bfloat16) is None


NUMBERS = {torch.float32: 2**-20, torch.bfloat16: 2**-8}  # a few of the last bits
numbers = pytest.mark.parametrize("dtype", NUMBERS, ids=str)


@numbers
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 2 * 33), (2048, 2 * 64), (2, 7, 11, 2 * 16), (0, 8)])
@torch.no_grad()
def test_gates_are_pytorchs_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    own = own_gate(dtype)
    if own is None:
        pytest.skip("needs a C compiler and a processor with AVX-512")
    both = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    h, gate = both.double().chunk(2, dim=-1)
    expected, last = h * F.gelu(gate), NUMBERS[dtype]
    for given in (both, both.mT.contiguous().mT):
        got = own(given)
        assert got.dtype == dtype
        assert got.shape == expected.shape
        assert ((got - expected).abs() <= last * (expected.abs() + h.abs() / 256) + 1e-30).all()


@numbers
def test_gates_far_out_and_of_no_numbers(dtype: torch.dtype) -> None:
    own = own_gate(dtype)
    if own is None:
        pytest.skip("needs a C compiler and a processor with AVX-512")
    gate = torch.tensor([-1e30, -100.0, -15.0, 0.0, 15.0, 100.0, float("nan"), float("inf")]).to(dtype)
    got = own(torch.cat([torch.ones(8).to(dtype), gate]))
    assert got[:3].abs().max() < 1e-30
    assert got[3:6].tolist() == [0, 15, 100]
    assert got[6].isnan()
    assert got[7].isinf()


NORMS = {torch.float32: 1e-5, torch.bfloat16: 2**-8}  # of the largest number
norms = pytest.mark.parametrize("dtype", NORMS, ids=str)


def norm_and_map(
    dtype: torch.dtype, channels: int, groups: int, size: tuple[int, int]
) -> tuple[nn.GroupNorm, Tensor, Tensor]:
    """A norm; two maps far from 0 with their channels last, whose first places are farther; a shift of them."""
    if own_norm(dtype) is None:
        pytest.skip("needs a C compiler and a processor with AVX-512")
    key = torch.Generator().manual_seed(channels)
    norm = nn.GroupNorm(groups, channels, 1e-6).requires_grad_(False)
    norm.weight.copy_(torch.randn(channels, generator=key))
    norm.bias.copy_(torch.randn(channels, generator=key))
    x = 5 + 2 * torch.randn(2, channels, *size, generator=key)
    x[:, :, 0, 0] += 100
    shift = 3 * torch.randn(2, channels, generator=key)
    return norm.to(dtype), x.to(dtype, memory_format=torch.channels_last), shift.to(dtype)


@norms
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "size"),
    [(32, 8, (1, 1)), (32, 32, (3, 5)), (40, 4, (16, 17)), (7, 7, (9, 33)), (320, 32, (64, 64)), (130, 2, (2, 300))],
)
@torch.no_grad()
def test_norms_are_pytorchs_to_rounding(
    channels: int, groups: int, size: tuple[int, int], shifted: bool, active: bool, dtype: torch.dtype
) -> None:
    norm, x, shift = norm_and_map(dtype, channels, groups, size)
    expected = x.double() + (shift.double()[:, :, None, None] if shifted else 0)
    expected = F.group_norm(expected, groups, norm.weight.double(), norm.bias.double(), norm.eps)
    expected = F.silu(expected) if active else expected
    got = normalised(norm, x, shift if shifted else None, active)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - expected).abs().max() <= NORMS[dtype] * expected.abs().max()


@norms
@torch.no_grad()
def test_norms_of_maps_laid_out_otherwise_are_the_same(dtype: torch.dtype) -> None:
    norm, x, shift = norm_and_map(dtype, 40, 4, (30, 11))
    expected = normalised(norm, x, shift, active=True)
    got = normalised(norm, x.contiguous(), shift, active=True)
    assert (got - expected).abs().max() <= 2 * NORMS[dtype] * expected.abs().max()
    one, moved = x[1:], shift[1:]
    for given in (one, one.contiguous()):
        layer = normaliser(norm, given, moved)
        rows = torch.cat([layer(given[:, :, :13]), layer(given[:, :, 13:])], dim=2)
        assert (rows - expected[1:]).abs().max() <= 2 * NORMS[dtype] * expected.abs().max()


@norms
@torch.no_grad()
def test_threads_do_not_matter_to_norms(dtype: torch.dtype) -> None:
    norm, x, _ = norm_and_map(dtype, 320, 32, (64, 64))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = normalised(norm, x, active=True)
        torch.set_num_threads(3)
        assert torch.equal(normalised(norm, x, active=True), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(normalised(norm, x[1:], active=True), alone[1:])


@norms
@torch.no_grad()
def test_norms_far_out_and_of_no_numbers(dtype: torch.dtype) -> None:
    norm, x, _ = norm_and_map(dtype, 16, 2, (16, 16))
    norm.weight.fill_(1), norm.bias.copy_(torch.tensor([1e4, -1e4] * 8))
    x[1, 3, 2, 2] = float("nan")
    got = normalised(norm, x, active=True)
    assert (got[0, ::2] > 9e3).all()
    assert (got[0, 1::2] == 0).all()
    assert got[1, :8].isnan().all()
    assert not got[1, 8:].isnan().any()


def test_norms_that_learn_are_pytorchs() -> None:
    norm, x, shift = norm_and_map(torch.float32, 8, 2, (5, 5))
    x.requires_grad_(True)
    normalised(norm, x, shift, active=True).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@norms
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 33), (2, 7, 320), (4, 1280), (0, 16)])
@torch.no_grad()
def test_layer_norms_are_pytorchs_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if own_norm(dtype) is None:
        pytest.skip("needs a C compiler and a processor with AVX-512")
    key = torch.Generator().manual_seed(shape[-1])
    ours, theirs = LayerNorm(shape[-1]).requires_grad_(False), nn.LayerNorm(shape[-1]).double()
    for x in (ours.weight, ours.bias):
        x.copy_(torch.randn(x.shape, generator=key))
    theirs.load_state_dict({name: x.to(dtype).double() for name, x in ours.state_dict().items()})
    ours, x = ours.to(dtype), (5 + 2 * torch.randn(shape, generator=key)).to(dtype)
    expected = theirs(x.double())
    for given in (x, x.mT.contiguous().mT):
        got = ours(given)
        assert (got.dtype, got.shape) == (dtype, x.shape)
        assert ((got - expected).abs() <= NORMS[dtype] * (expected.abs() + 1)).all()
    if x.numel():
        with torch.enable_grad():
            assert ours(x.requires_grad_()).requires_grad, "what learns is PyTorch's"


def test_what_stands_for_a_tensor_is_not_taken_for_one() -> None:
    with FakeTensorMode(), torch.no_grad():
        assert LayerNorm(16)(torch.zeros(2, 16)).shape == (2, 16)


THREES = {"tiles": KERNELS[0], "pairs": KERNELS[1], "float": KERNELS[3]}
threes = pytest.mark.parametrize("way", THREES.values(), ids=THREES)


def library(way: Kernel) -> ctypes.CDLL:
    """As it is compiled for a way, if this processor has it."""
    found = kernel_module.library(way.flags) if way.needs in kernel_module._processor() else None
    if found is None:
        pytest.skip(f"needs a C compiler and a processor with {way.needs}")
    return found


def own_threes(way: Kernel) -> Convolution:
    return Convolution(library(way), way.tiles)


def maps(
    dtype: torch.dtype, channels: int, out: int, size: tuple[int, int], batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with their channels last, weights of a 3x3 convolution, a bias."""
    key = torch.Generator().manual_seed(channels + out)
    x = torch.randn(batch, channels, *size, generator=key)
    weight = torch.randn(out, channels, 3, 3, generator=key) / (3 * channels**0.5)
    bias = torch.randn(out, generator=key)
    return x.to(dtype, memory_format=torch.channels_last), weight.to(dtype), bias.to(dtype)


@threes
@pytest.mark.parametrize(
    ("channels", "out", "size"),
    [(16, 16, (1, 1)), (3, 5, (7, 9)), (33, 70, (4, 4)), (100, 130, (13, 6)), (64, 16, (1, 30)), (65, 33, (5, 2)),
     (320, 320, (64, 64)), (200, 48, (31, 33)), (1280, 640, (8, 8)), (700, 40, (48, 130)), (30, 30, (20, 50))],
)  # fmt: skip
@pytest.mark.parametrize("grows", [1, 2])
@torch.no_grad()
def test_convolutions_are_exact_but_for_rounding(
    channels: int, out: int, size: tuple[int, int], grows: int, way: Kernel
) -> None:
    """The error is at most four times that of PyTorch's in single precision, and no more than its own in bf16."""
    own, dtype = own_threes(way), way.dtype
    x, weight, bias = maps(dtype, channels, out, size)
    seen = x.repeat_interleave(grows, 2).repeat_interleave(grows, 3)
    beside = torch.randn(2, out, *seen.shape[2:], generator=torch.Generator().manual_seed(0)).to(dtype)
    ordered = own.order(weight)
    assert torch.equal(ordinary(ordered, out, channels), weight)
    for b, other in ((bias, None), (None, beside), (bias, beside)):
        more = 0 if other is None else other.double()
        exact = F.conv2d(seen.double(), weight.double(), None if b is None else b.double(), padding=1) + more
        theirs = F.conv2d(seen, weight, b, padding=1) + (0 if other is None else other)
        got = own(x, ordered, out, b, other, grows)
        assert (got.dtype, got.shape) == (dtype, exact.shape)
        assert got.is_contiguous(memory_format=torch.channels_last)
        limit = (theirs - exact).square().mean().sqrt()
        ours = (got - exact).square().mean().sqrt()
        assert ours <= (4 * limit + 1e-7 if dtype == torch.float32 else 1.01 * limit + 1e-4)


@threes
@pytest.mark.parametrize(("channels", "out"), [(1, 1), (5, 1), (1, 33), (33, 70), (64, 32), (130, 47)])
def test_weights_are_ordered_as_they_lie_and_turned(channels: int, out: int, way: Kernel) -> None:
    own, weight = own_threes(way), maps(way.dtype, channels, out, (1, 1))[1]
    turned = weight.flip(2, 3).transpose(0, 1)
    for laid_out in (weight, weight.contiguous(memory_format=torch.channels_last), weight.mT.contiguous().mT):
        assert torch.equal(own.order(laid_out), own.order(weight.clone()))
        assert torch.equal(ordinary(own.order(laid_out, turned=True), channels, out), turned)


@threes
@torch.no_grad()
def test_threads_batches_and_layouts_do_not_matter_to_convolutions(
    way: Kernel,
) -> None:
    own = own_threes(way)
    x, weight, bias = maps(way.dtype, 70, 100, (30, 33), batch=3)
    ordered, threads, beside = own.order(weight), torch.get_num_threads(), x.new_ones(3, 100, 30, 33)
    try:
        torch.set_num_threads(1)
        alone = own(x, ordered, 100, bias, beside)
        torch.set_num_threads(3)
        assert torch.equal(own(x.contiguous(), ordered, 100, bias, beside), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(own(x[1:], ordered, 100, bias, beside[1:]), alone[1:])
    assert own(x[:0], ordered, 100, bias).shape == (0, 100, 30, 33)


@threes
@torch.no_grad()
def test_what_is_no_number_stays_near(way: Kernel) -> None:
    own = own_threes(way)
    x, weight, bias = maps(way.dtype, 20, 20, (16, 16))
    x[1, 3, 6, 6] = float("nan")
    got = own(x, own.order(weight), 20, bias)
    assert got[1, :, 5:8, 5:8].isnan().all()
    assert not got[0].isnan().any()
    far = torch.ones(16, 16, dtype=torch.bool)
    far[4:12, 4:12] = False
    assert not got[1][:, far].isnan().any()


def test_which_convolutions_are_our_own_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    own_threes(THREES["float"])
    float_, both = {torch.float32}, {torch.float32, torch.bfloat16}
    tiles = both if THREES["tiles"].needs in kernel_module._processor() else float_
    for flags, dtypes in (("avx512f avx512_bf16 amx_bf16", tiles), ("avx512f", float_), ("", set())):
        monkeypatch.setattr(kernel_module, "_processor", lambda flags=flags: frozenset(flags.split()))
        assert {dtype for dtype in NUMBERS if own_convolution(dtype) is not None} == dtypes


ROWS = {"tiles": KERNELS[0], "float": KERNELS[3]}
products = pytest.mark.parametrize("way", ROWS.values(), ids=ROWS)


def own_rows(way: Kernel) -> Product:
    return Product(library(way), way.tiles)


@products
@pytest.mark.parametrize(
    ("rows", "width", "out"),
    [(1, 1, 2), (2, 1280, 1280), (33, 40, 70), (100, 320, 320), (77, 31, 33), (16, 32, 32), (5, 700, 34), (0, 9, 4),
     (700, 320, 2560), (130, 1290, 100), (1200, 2561, 64), (3, 5120, 1280)],
)  # fmt: skip
@pytest.mark.parametrize("halves", [False, True])
@torch.no_grad()
def test_linear_layers_are_exact_but_for_rounding(rows: int, width: int, out: int, halves: bool, way: Kernel) -> None:
    """No further off than rounding what comes out to 8 bits, or to 24; and sums, to 24."""
    own, dtype = own_rows(way), way.dtype
    out += halves and out % 2
    key = torch.Generator().manual_seed(rows + width + out)
    x, weight, bias, beside = (
        torch.randn(shape, generator=key).to(dtype) for shape in ((rows, width), (out, width), (out,), (rows, out))
    )
    weight = weight / width**0.5
    ordered, threads = own.order(weight, halves), torch.get_num_threads()
    assert torch.equal(ordinary_rows(ordered, out, width, halves), weight)
    last, sums = 2**-8 if dtype == torch.bfloat16 else 2**-23, 6e-7 * width**0.5 + 1e-6
    for b, other in ((bias, None), (None, beside), (bias, beside)):
        exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
        exact = exact if other is None else exact + other
        got = own(x, ordered, out, b, other, halves)
        assert got.dtype == dtype
        assert ((got - exact).abs() <= last * exact.abs() + sums).all()
    h, gate = F.linear(x.double(), weight.double(), bias.double()).tensor_split(2, -1)
    if halves:
        got, exact = own(x, ordered, out, bias, None, halves=True, gates=True), h * F.gelu(gate)
        near = 1e-4 if dtype == torch.bfloat16 else 0.0
        assert ((got - exact).abs() <= last * exact.abs() + (near + 2 * sums) * (h.abs() + gate.abs() + 1)).all()
    try:
        torch.set_num_threads(1)
        alone = own(x, ordered, out, bias, beside, halves)
        torch.set_num_threads(3)
        assert torch.equal(own(x.T.contiguous().T, ordered, out, bias, beside, halves), alone)
    finally:
        torch.set_num_threads(threads)
    if rows > 1:
        some = own(x[1:], ordered, out, bias, beside[1:], halves)
        assert torch.equal(some, alone[1:]), "each row is multiplied alone"


@products
@torch.no_grad()
def test_what_is_no_number_stays_in_its_row(way: Kernel) -> None:
    own = own_rows(way)
    x, weight = torch.ones(40, 33, dtype=way.dtype), torch.ones(20, 33, dtype=way.dtype)
    x[7, 32] = float("nan")
    got = own(x, own.order(weight), 20, None)
    assert got[7].isnan().all()
    assert torch.equal(got.isnan().any(-1).nonzero().flatten(), torch.tensor([7]))


def test_which_linear_layers_are_our_own_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    own_rows(ROWS["float"])
    tiles = ROWS["tiles"].needs in kernel_module._processor()
    monkeypatch.setattr(kernel_module, "_processor", lambda: frozenset({"avx512f", "avx512_bf16"}))
    assert [own_product(dtype) for dtype in NUMBERS] == [None] * len(NUMBERS)
    assert own_product(torch.float32, gates=True) is not None
    assert own_product(torch.bfloat16, gates=True) is None
    monkeypatch.setattr(kernel_module, "_processor", lambda: frozenset({"amx_bf16"}))
    assert (own_product(torch.bfloat16) is not None) == tiles
