"""Layers put in the place of others, and taken out again; the network itself is unaware of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from gradina.errors import WeightsError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Injected:
    """What was put into a network: `remove()` leaves it bit-identically as it was before."""

    network: nn.Module
    layers: Mapping[str, nn.Module]  # those that were put in, by name
    before: Mapping[str, nn.Module]  # those that they replaced

    def remove(self) -> None:
        """Restores the replaced layers. Raises WeightsError if others were injected on top, or these are out."""
        for name, layer in self.layers.items():
            if self.network.get_submodule(name) is not layer:
                raise WeightsError(f"{name}: is not what was put in; remove what was put in later, first")
        for name, layer in self.before.items():
            self.network.set_submodule(name, layer)


def inject(network: nn.Module, layers: Mapping[str, nn.Module]) -> Injected:
    """Puts layers in the place of those of the same names. Raises WeightsError for a name that is not there."""
    before = {name: layer_of(network, name) for name in layers}
    for name, layer in layers.items():
        network.set_submodule(name, layer)
    return Injected(network, dict(layers), before)


def layer_of(network: nn.Module, name: str) -> nn.Module:
    """The layer of that name, or WeightsError."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise WeightsError(f"{name}: there is no such layer in {type(network).__name__}") from error


def shallow_clone(network: Network) -> Network:
    """Another network of the same parameters: layers injected into one are not in the other, and nothing is copied."""
    other = copy.copy(network)
    other._parameters, other._buffers = dict(network._parameters), dict(network._buffers)
    other._modules = {name: child and shallow_clone(child) for name, child in network._modules.items()}
    return other


def linear_and_conv_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The linear layers and convolutions of a network, by name."""
    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def replaced(network: Network, parameters: Mapping[str, Tensor]) -> Network:
    """A shallow clone with other values, fixed, or other parameters in place of some; the network stays as it is."""
    other = shallow_clone(network)
    for name, value in parameters.items():
        parent, _, leaf = name.rpartition(".")
        given = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        other.get_submodule(parent)._parameters[leaf] = given
    return other
