"""What is put in comes out again, bit-identically, and twins share what they do not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradina.adapters.inject import inject, linear_and_conv_layers, shallow_clone
from gradina.errors import WeightsError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ModuleList([nn.Conv2d(1, 2, 3), nn.Linear(4, 4, bias=False)]))


def test_injected_layers_are_removed() -> None:
    net = network()
    before, state = dict(net.named_modules()), {k: v.clone() for k, v in net.state_dict().items()}
    injected = inject(net, {"0": nn.Identity(), "1.1": nn.Identity()})
    assert isinstance(net.get_submodule("1.1"), nn.Identity)
    injected.remove()
    assert dict(net.named_modules()) == before
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert list(net.state_dict()) == list(state)


def test_layers_on_top_are_removed_first() -> None:
    net = network()
    one = inject(net, {"0": nn.Identity()})
    two = inject(net, {"0": nn.Identity()})
    with pytest.raises(WeightsError, match="0: is not what was put in; remove what was put in later, first"):
        one.remove()
    two.remove()
    one.remove()
    with pytest.raises(WeightsError, match="0: is not what was put in"):
        one.remove()
    assert isinstance(net.get_submodule("0"), nn.Linear)


def test_an_unknown_layer_changes_nothing() -> None:
    net = network()
    with pytest.raises(WeightsError, match=r"1\.7: there is no such layer in Sequential"):
        inject(net, {"0": nn.Identity(), "1.7": nn.Identity()})
    assert isinstance(net.get_submodule("0"), nn.Linear)


def test_shallow_clones_share_parameters_but_not_modules() -> None:
    net = network()
    other = shallow_clone(net)
    inject(other, {"1.0": nn.Identity()})
    assert isinstance(net.get_submodule("1.0"), nn.Conv2d)
    assert {p.data_ptr() for p in other.parameters()} < {p.data_ptr() for p in net.parameters()}
    other.get_submodule("0").weight = nn.Parameter(torch.zeros(4, 3))
    assert net.get_submodule("0").weight.abs().sum() > 0


def test_linear_and_conv_layers_are_listed() -> None:
    assert [name for name, _ in linear_and_conv_layers(network())] == ["0", "1.0", "1.1"]
