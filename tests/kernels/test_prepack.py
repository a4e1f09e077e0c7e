"""A packed weight is in a kernel's order to that kernel, and plain to all else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from gradina.kernels.dispatch import available
from gradina.kernels.prepack import CONV3X3, GEGLU, LINEAR, ONEDNN_LINEAR, Order, PackedWeight, onednn_conv
from gradina.runtime.device import multiplies_bf16

STRIDED = onednn_conv(nn.Conv2d(20, 24, 3, stride=2, padding=1))
WEIGHTS: dict[str, tuple[Order, tuple[int, ...], str]] = {
    "linear": (LINEAR, (70, 33), "linear"), "pointwise": (LINEAR, (24, 20, 1, 1), "conv2d"),
    "geglu": (GEGLU, (70, 33), "linear_geglu"), "conv3x3": (CONV3X3, (24, 20, 3, 3), "conv2d"),
    "onednn_linear": (ONEDNN_LINEAR, (70, 33), "linear"), "onednn_pointwise": (ONEDNN_LINEAR, (24, 20, 1, 1), "conv2d"),
    "onednn_conv": (STRIDED, (24, 20, 3, 3), "conv2d"),
}  # fmt: skip


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=WEIGHTS.values(), ids=WEIGHTS)
def weights(request: pytest.FixtureRequest, dtype: torch.dtype) -> tuple[Tensor, PackedWeight]:
    """A plain weight, and packed."""
    order, shape, operation = request.param
    if dtype == torch.bfloat16 and not multiplies_bf16():
        pytest.skip("oneDNN packs bf16 for CPUs that multiply in it")
    if not available(operation, dtype, order.name):
        pytest.skip("needs a C compiler and a CPU with AVX-512, and partly AMX")
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return plain, PackedWeight(plain, order)


def test_its_values_are_those_it_was_made_of(weights: tuple[Tensor, PackedWeight]) -> None:
    plain, packed = weights
    assert (packed.shape, packed.dtype, packed.device) == (plain.shape, plain.dtype, plain.device)
    assert torch.equal(packed.plain(), plain)
    assert torch.equal(packed.detach(), plain)
    assert torch.equal(packed.to_dense(), plain)
    assert torch.equal(packed + 1, plain + 1)
    assert "PackedWeight" in repr(packed)


def test_a_layer_with_it_is_saved_loaded_moved_and_copied_as_a_plain_one(
    weights: tuple[Tensor, PackedWeight],
) -> None:
    plain, packed = weights
    layer: nn.Linear | nn.Conv2d = nn.Linear(1, 1) if plain.ndim == 2 else nn.Conv2d(1, 1, 1)
    layer.weight = packed
    saved = layer.state_dict()["weight"]
    assert type(saved) is Tensor
    assert torch.equal(saved, plain)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(copied.weight) is nn.Parameter
        assert not copied.weight.requires_grad
        assert torch.equal(copied.weight, plain)
    layer.load_state_dict({**layer.state_dict(), "weight": 2 * plain})
    assert layer.weight is packed
    assert torch.equal(packed.plain(), 2 * plain)
    other = copy.copy(layer)
    other._parameters = dict(layer._parameters)
    other.double()
    assert type(other.weight) is nn.Parameter
    assert torch.equal(other.weight, 2 * plain.double())
    assert layer.to(plain.dtype).weight is packed
    assert layer.to("meta").weight.is_meta


def test_it_cannot_be_written_to(weights: tuple[Tensor, PackedWeight]) -> None:
    plain, packed = weights
    for write in (lambda: packed.mul_(2), lambda: torch._foreach_mul_([packed], 2)):
        with pytest.raises(RuntimeError, match=r"this weight is prepacked, and so read-only; restore"):
            write()
    assert torch.equal(packed.plain(), plain)
    assert torch.equal(torch.zeros_like(plain).copy_(packed), plain)
