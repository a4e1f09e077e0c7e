"""LoRA: a low-rank update of a layer's weight. Source: Hu et al. 2106.09685, eq. 3.

    W x + (alpha / rank) · scale · up (down x)

For a convolution, `down` is one of the same kernel to `rank` channels, and `up` one of 1x1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.adapters.inject import Injected, Network, inject, layer_of, linear_and_conv_layers, shallow_clone
from gradina.errors import WeightsError
from gradina.nn.ops import weight_like

ATTENTION = (r".*attn\.(q|k|v|out)",)  # the layers that are usually adapted: all projections of all attentions


@dataclass(frozen=True, eq=False)
class LoRAWeights:
    """The update of one layer: down (rank, in[, kh, kw]), up (out, rank[, 1, 1]), and alpha, often the rank."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return len(self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it is added to."""
        return (len(self.up), *self.down.shape[1:])

    def product(self) -> Tensor:
        """The update of the weight, in fp32."""
        return (self.alpha / self.rank) * (self.up.float().flatten(1) @ self.down.float().flatten(1)).view(self.shape)


Layers = Mapping[str, LoRAWeights]  # by the names of the layers of one network


@dataclass(frozen=True, eq=False)
class LoRA:
    """The updates of a model's networks."""

    unet: Layers = field(default_factory=dict)
    text: Layers = field(default_factory=dict)


class LoRALayer(nn.Module):
    """A layer with a LoRA; `scale` may be changed at any time."""

    def __init__(self, base: nn.Module, weights: LoRAWeights, scale: float = 1.0) -> None:
        super().__init__()
        self.base, self.alpha, self.scale = base, weights.alpha, scale
        self.down, self.up = nn.Parameter(weights.down), nn.Parameter(weights.up)
        plain = base
        while isinstance(plain, LoRALayer):
            plain = plain.base
        self.conv = (plain.stride, plain.padding, plain.dilation) if isinstance(plain, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.conv is None:
            update = F.linear(F.linear(x, down), up)
        else:
            stride, padding, dilation = self.conv
            update = F.conv2d(F.conv2d(x, down, None, stride, padding, dilation), up)
        out: Tensor = self.base(x)
        return out + (self.scale * self.alpha / len(self.down)) * update

    @property
    def weight(self) -> Tensor:
        """The weight of the layer itself, which others ask for its dtype and device."""
        return cast(Tensor, self.base.weight)

    @property
    def weights(self) -> LoRAWeights:
        """The update as trained so far."""
        return LoRAWeights(self.down.detach(), self.up.detach(), self.alpha)


def initial_lora(
    network: nn.Module, rank: int, key: torch.Generator, targets: Iterable[str] = ATTENTION, alpha: float | None = None
) -> dict[str, LoRAWeights]:
    """A LoRA that changes nothing yet, for the layers whose whole names match one of the patterns `targets`.

    `down` is drawn as PyTorch draws linear layers, `up` is 0. Raises WeightsError if no layer matches.
    """
    patterns = [re.compile(target) for target in targets]
    found: dict[str, LoRAWeights] = {}
    for name, layer in linear_and_conv_layers(network):
        if any(pattern.fullmatch(name) for pattern in patterns):
            out, *inner = layer.weight.shape
            down = torch.empty(rank, *inner)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=key)
            found[name] = LoRAWeights(down, torch.zeros(out, rank, *[1] * (len(inner) - 1)), alpha or float(rank))
    if not found:
        raise WeightsError(f"targets: no layer of {type(network).__name__} matches {' or '.join(targets)}")
    return found


def adapt(network: nn.Module, layers: Layers, scale: float = 1.0) -> Injected:
    """Injects a LoRA into a network, where it can be trained or scaled; several may be put on top.

    Raises WeightsError where a layer is not there or has another shape.
    """
    return inject(network, {name: LoRALayer(_fitting(network, name, x), x, scale) for name, x in layers.items()})


def merged(network: Network, *stack: tuple[Layers, float]) -> Network:
    """A network with LoRAs, each at its scale, added to its weights; it shares all others with `network`.

    That one stays as it is, to the bit. Raises WeightsError as `adapt`.
    """
    other = shallow_clone(network)
    for name in dict.fromkeys(name for layers, _ in stack for name in layers):
        added = torch.zeros(())
        for layers, scale in stack:
            if name in layers:
                plain = _fitting(network, name, layers[name])
                added = added + scale * layers[name].product()
        if isinstance(plain, LoRALayer):
            raise WeightsError(f"{name}: has a LoRA already; remove that one first")
        layer = shallow_clone(plain)
        assert isinstance(layer.weight, Tensor)
        weight = (layer.weight.float() + added.to(layer.weight.device)).to(layer.weight.dtype)
        layer.weight = weight_like(layer.weight, weight)
        other.set_submodule(name, layer)
    return other


def _fitting(network: nn.Module, name: str, weights: LoRAWeights) -> nn.Module:
    """The layer that a LoRA is for, checked to fit."""
    layer = plain = layer_of(network, name)
    while isinstance(plain, LoRALayer):
        plain = plain.base
    if not isinstance(plain, nn.Linear | nn.Conv2d):
        raise WeightsError(f"{name}: is {type(plain).__name__}; a LoRA adapts linear layers and convolutions")
    shape = tuple(plain.weight.shape)
    if weights.shape != shape or weights.up.shape[1] != weights.rank:
        raise WeightsError(
            f"{name}: the LoRA is for a layer of shape {'x'.join(map(str, weights.shape))}, "
            f"this model's has {'x'.join(map(str, shape))}; take one that was made for this family"
        )
    return layer
