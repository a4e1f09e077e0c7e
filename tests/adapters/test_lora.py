"""LoRA: its equation, on linear layers and convolutions; in, on top of each other, out; and added to weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.adapters.lora import LoRALayer, LoRAWeights, adapt, initial_lora, merged
from gradina.errors import WeightsError
from gradina.models.unet import UNet, UNetConfig
from gradina.runtime.prepack import prepack

SMALL = UNetConfig(widths=(16, 32), attention=(True, False), heads=(4, 4), blocks=1, context=24, groups=8, size=8)
CONVS = (r".*conv\d?", r".*skip", r".*attn\.(q|k|v|out)", r".*proj_(in|out)")


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL).requires_grad_(False).eval()


def learnt(
    network: nn.Module, seed: int, targets: tuple[str, ...] = CONVS, alpha: float = 3.0
) -> dict[str, LoRAWeights]:
    """A LoRA that has learnt something."""
    key = torch.Generator().manual_seed(seed)
    layers = initial_lora(network, 2, key, targets, alpha)
    return {n: LoRAWeights(x.down, torch.randn(x.up.shape, generator=key) / 10, x.alpha) for n, x in layers.items()}


def asked(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    key = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 8, 8, generator=key), torch.tensor([3, 700]), torch.randn(2, 5, 24, generator=key)


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max().detach() / other.abs().max().detach())


def test_linear_update_is_the_equation() -> None:
    key = torch.Generator().manual_seed(0)
    weights = LoRAWeights(torch.randn(2, 6, generator=key), torch.randn(5, 2, generator=key), 3.0)
    layer, x = nn.Linear(6, 5), torch.randn(4, 6, generator=key)
    expected = layer(x) + 0.7 * 3.0 / 2 * (x @ weights.down.T @ weights.up.T)
    assert torch.allclose(LoRALayer(layer, weights, 0.7)(x), expected, atol=1e-6)
    assert torch.allclose(F.linear(x, layer.weight + 0.7 * weights.product(), layer.bias), expected, atol=1e-6)


def test_convolution_update_is_the_equation() -> None:
    key = torch.Generator().manual_seed(0)
    weights = LoRAWeights(torch.randn(2, 3, 3, 3, generator=key), torch.randn(5, 2, 1, 1, generator=key), 1.0)
    layer, x = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(1, 3, 9, 7, generator=key)
    whole = F.conv2d(x, layer.weight + weights.product(), layer.bias, stride=2, padding=1)
    assert torch.allclose(LoRALayer(layer, weights)(x), whole, atol=1e-5)


def test_a_new_lora_changes_nothing_and_depends_on_its_key(unet: UNet) -> None:
    one, same = (initial_lora(unet, 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(one[name].down, same[name].down) for name in one)
    assert all(x.down.abs().sum() > 0 for x in one.values())
    assert {name.rpartition(".")[2] for name in one} == {"q", "k", "v", "out"}
    assert next(iter(one.values())).alpha == 4
    before = unet(*asked())
    adapt(unet, one)
    assert torch.equal(unet(*asked()), before)


def test_loras_are_injected_scaled_and_removed(unet: UNet) -> None:
    state, before = {k: v.clone() for k, v in unet.state_dict().items()}, unet(*asked())
    injected = adapt(unet, learnt(unet, 1))
    full = unet(*asked())
    assert far(full, before) > 0.01
    for layer in injected.layers.values():
        assert isinstance(layer, LoRALayer)
        layer.scale = 0.0
    assert torch.equal(unet(*asked()), before)
    injected.remove()
    assert torch.equal(unet(*asked()), before)
    assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items())
    assert len(unet.state_dict()) == len(state)


@pytest.mark.parametrize("in_order", [lambda net: net, prepack], ids=["plain", "packed"])
def test_merging_several_adds_their_updates(unet: UNet, in_order: Callable[[UNet], UNet]) -> None:
    one, two = learnt(unet, 1), learnt(unet, 2, (r".*attn\.q",))
    unet = in_order(unet)
    state, before = {k: v.clone() for k, v in unet.state_dict().items()}, unet(*asked())
    together = merged(unet, (one, 0.8), (two, -0.5))
    assert torch.equal(unet(*asked()), before), "the network itself stays as it was"
    assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items())
    first, second = adapt(unet, one, 0.8), adapt(unet, two, -0.5)
    with torch.no_grad():
        assert far(together(*asked()), unet(*asked())) < 1e-5
    with pytest.raises(WeightsError, match="has a LoRA already"):
        merged(unet, (one, 1.0))
    second.remove()
    first.remove()
    assert torch.equal(unet(*asked()), before)
    assert set(together.state_dict()) == set(state)


def test_merging_keeps_the_dtype_and_shares_other_parameters(unet: UNet) -> None:
    half = unet.to(torch.bfloat16)
    together = merged(half, (learnt(half, 1, (r".*attn\.q",)), 1.0))
    assert {p.dtype for p in together.parameters()} == {torch.bfloat16}
    shared = {p.data_ptr() for p in together.parameters()} & {p.data_ptr() for p in half.parameters()}
    changed = sum(name.endswith("attn.q.weight") for name in half.state_dict())
    assert len(shared) == len(list(half.parameters())) - changed


def test_training_changes_the_lora_alone(unet: UNet) -> None:
    injected = adapt(unet, initial_lora(unet, 2, torch.Generator().manual_seed(0)))
    learning = [p for p in unet.parameters() if p.requires_grad]
    assert len(learning) == 2 * len(injected.layers)
    optimizer, losses = torch.optim.Adam(learning, 1e-2), []
    goal = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for _ in range(30):
        loss = F.mse_loss(unet(*asked()), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    layers = {name: layer.weights for name, layer in injected.layers.items() if isinstance(layer, LoRALayer)}
    adapted = unet(*asked())
    injected.remove()
    assert far(merged(unet, (layers, 1.0))(*asked()), adapted) < 1e-5


WRONG = [
    ({"down.9.attn": (4, 4)}, r"down\.9\.attn: there is no such layer in UNet"),
    ({"mid": (4, 4)}, "mid: is Middle; a LoRA adapts linear layers and convolutions"),
    ({"conv_in": (16, 5)}, "conv_in: the LoRA is for a layer of shape 16x5, this model's has 16x4x3x3; take one that"),
]


@pytest.mark.parametrize(("layers", "words"), WRONG)
def test_misfits_are_named(unet: UNet, layers: dict[str, tuple[int, int]], words: str) -> None:
    made = {name: LoRAWeights(torch.zeros(1, inner), torch.zeros(out, 1), 1.0) for name, (out, inner) in layers.items()}
    for put in (lambda: adapt(unet, made), lambda: merged(unet, (made, 1.0))):
        with pytest.raises(WeightsError, match=words):
            put()


def test_targets_that_match_nothing_are_named(unet: UNet) -> None:
    with pytest.raises(WeightsError, match=r"targets: no layer of UNet matches attn or ponies"):
        initial_lora(unet, 2, torch.Generator(), ("attn", "ponies"))
