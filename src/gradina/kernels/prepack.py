"""Which layers of a network are packed, and how: where they can be, and gain."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from gradina.kernels.bindings import own_norm
from gradina.kernels.gemm import own_convolution, own_product
from gradina.kernels.prepacked import (
    Packed,
    PackedConv2d,
    PackedGate,
    PackedLinear,
    PackedPointwise,
    PackedThree,
    pack,
    unpack,
)
from gradina.nn.conv2d import Conv2d, is_pointwise, is_three
from gradina.nn.geglu import Gate

Network = TypeVar("Network", bound=nn.Module)
Convert = Callable[[Tensor], Tensor]

LARGE = 2**21  # weights of a convolution: smaller ones gain only where norms, too, are quick with channels last
AWKWARD = 48  # convolutions to a multiple of so many channels take oneDNN up to 25 times as long for some maps,
ENOUGH = {torch.bfloat16: 256}  # but not to as many at most
PLAIN = (nn.Conv2d, Conv2d)  # what convolutions are before


def packed(network: Network, convert: Convert | None = None) -> Network:
    """The network itself, its linear layers and convolutions packed where they can be and gain: on a CPU, fixed.

    What a packed convolution gives has its channels last in memory. So where there is one, all others follow. With
    `convert` each layer's numbers are converted just before they are packed: no more than one layer is there twice.
    """
    last = any(_way(m, convert) in (PackedConv2d, PackedThree) for m in network.modules())
    for layer in network.modules():
        if convert is not None:
            _renumber(layer, convert)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not _can_be(layer):
            continue
        kind = _way(layer)
        if kind is not None and (last or issubclass(kind, nn.Linear)):
            pack(layer, kind)
        elif type(layer) in PLAIN and last:
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return network


def unpacked(network: Network) -> Network:
    """The network itself, with its weights as plain as they were: to learn on."""
    for layer in network.modules():
        if isinstance(layer, Packed):
            unpack(layer)
    return network


def converted(network: Network, convert: Convert) -> Network:
    """The network itself with other numbers, which are fixed."""
    for layer in network.modules():
        _renumber(layer, convert)
    return network


def _renumber(layer: nn.Module, convert: Convert) -> None:
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            layer._parameters[name] = nn.Parameter(convert(parameter.detach()), requires_grad=False)
    for name, buffer in layer._buffers.items():
        layer._buffers[name] = buffer if buffer is None else convert(buffer)


def _can_be(layer: nn.Linear | nn.Conv2d) -> bool:
    weight = layer.weight
    return not weight.requires_grad and weight.device.type == "cpu" and _works(weight.dtype)


def _way(layer: nn.Module, convert: Convert | None = None) -> type[Packed] | None:
    """How a plain layer is best packed, when its numbers are converted and channels lie last; None: not at all."""
    if type(layer) is nn.Linear:
        return PackedLinear
    if type(layer) is Gate:
        return PackedGate if own_product(_dtype(layer, convert), gates=True) else PackedLinear
    if not isinstance(layer, nn.Conv2d) or type(layer) not in PLAIN:
        return None
    if is_pointwise(layer):
        return PackedPointwise
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    dtype = _dtype(layer, convert)
    if is_three(layer) and own_convolution(dtype):
        return PackedThree
    awkward = layer.out_channels % AWKWARD == 0 and layer.out_channels > ENOUGH.get(dtype, 0)
    gains = layer.weight.numel() >= LARGE or own_norm(dtype) is not None
    return PackedConv2d if gains and not awkward else None


def _dtype(layer: nn.Linear | nn.Conv2d, convert: Convert | None) -> torch.dtype:
    return (convert(layer.weight.new_empty(0)) if convert else layer.weight).dtype


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this processor, and this build of PyTorch, has such products for numbers of that type."""
    line, square = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    try:
        for layer, kind, x in (
            (nn.Linear(1, 1, dtype=dtype), PackedLinear, line),
            (nn.Conv2d(1, 1, 1, padding=1, dtype=dtype), PackedConv2d, square),
        ):
            pack(layer.requires_grad_(False), kind)
            layer(x)
    except (RuntimeError, AttributeError):
        return False
    return dtype in (torch.float32, torch.bfloat16)
