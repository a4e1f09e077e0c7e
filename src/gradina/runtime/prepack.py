"""Prepacks networks for inference on a CPU: their weights in the order in which kernels read them, and back.

Only the weight of a layer is replaced, by a `PackedWeight`, which is plain to everything but its kernel. So
a prepacked network is saved, moved, copied, and given LoRAs as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from gradina.kernels.dispatch import LAST, available, is_conv3x3, is_pointwise
from gradina.kernels.prepack import CONV3X3, GEGLU, LINEAR, ONEDNN_LINEAR, Order, PackedWeight, onednn_conv
from gradina.nn.conv import Conv2d
from gradina.nn.geglu import GatedLinear
from gradina.nn.linear import Linear

Network = TypeVar("Network", bound=nn.Module)
Convert = Callable[[Tensor], Tensor]

LARGE = 2**21  # weights of a convolution: smaller ones gain only where norms, too, are fast in channels-last layout
SLOW_MULTIPLE = 48  # convolutions to a multiple of so many channels take oneDNN up to 25 times as long for some maps,
FAST_UP_TO = {torch.bfloat16: 256}  # but not to as many at most


def prepack(network: Network, convert: Convert | None = None) -> Network:
    """The network itself, its linear layers and convolutions prepacked where they can be and gain: on a CPU, fixed.

    The output of a prepacked convolution is channels-last. So where there is one, the weights of all others are, too.
    With `convert` each layer's tensors are converted just before: no more than one layer is in memory twice.
    """
    orders = [_order(m, _dtype(m, convert)) for m in network.modules() if isinstance(m, Conv2d)]
    last = any(order is not None and order.name in ("conv3x3", "onednn_conv") for order in orders)
    for layer in network.modules():
        if convert is not None:
            _convert(layer, convert)
        if not isinstance(layer, Linear | Conv2d) or not _can_be_packed(layer.weight):
            continue
        order = _order(layer, layer.weight.dtype)
        if order is not None and (last or isinstance(layer, Linear)):
            layer.weight = cast(nn.Parameter, PackedWeight(layer.weight, order))
        elif last:
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return network


def restore(network: Network) -> Network:
    """The network itself with plain weights again, to the bit, to train on."""
    for layer in network.modules():
        weight: Tensor | None = layer._parameters.get("weight")
        if isinstance(weight, PackedWeight):
            layer._parameters["weight"] = nn.Parameter(weight.plain(), requires_grad=False)
    return network


def converted(network: Network, convert: Convert) -> Network:
    """The network itself with converted tensors, whose parameters are fixed."""
    for layer in network.modules():
        _convert(layer, convert)
    return network


def channels_last(network: Network, dtype: torch.dtype) -> Network:
    """The network itself in the layout that is the fastest to train in that dtype.

    That is channels-last, for its weights and so for its feature maps, if it has GroupNorms and they are fast with it.
    """
    if available("group_norm", dtype, LAST) and any(isinstance(layer, nn.GroupNorm) for layer in network.modules()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _convert(layer: nn.Module, convert: Convert) -> None:
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            layer._parameters[name] = nn.Parameter(convert(parameter.detach()), requires_grad=False)
    for name, buffer in layer._buffers.items():
        layer._buffers[name] = buffer if buffer is None else convert(buffer)


def _dtype(layer: Linear | Conv2d, convert: Convert | None) -> torch.dtype:
    return (convert(layer.weight.new_empty(0)) if convert else layer.weight).dtype


def _can_be_packed(weight: Tensor) -> bool:
    plain = not isinstance(weight, PackedWeight) and not weight.requires_grad
    return plain and weight.device.type == "cpu" and _works(weight.dtype)


def _order(layer: Linear | Conv2d, dtype: torch.dtype) -> Order | None:
    """The order in which a layer's weights are read the fastest, in channels-last layout; None: PyTorch's."""
    linear = LINEAR if available("linear", dtype, LINEAR.name) else ONEDNN_LINEAR
    if isinstance(layer, Linear):
        gated = isinstance(layer, GatedLinear) and available("linear_geglu", dtype, GEGLU.name)
        return GEGLU if gated else linear
    if is_pointwise(layer):
        return linear
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    if is_conv3x3(layer) and available("conv2d", dtype, CONV3X3.name):
        return CONV3X3
    slow = layer.out_channels % SLOW_MULTIPLE == 0 and layer.out_channels > FAST_UP_TO.get(dtype, 0)
    gains = layer.weight.numel() >= LARGE or available("group_norm", dtype, LAST)
    return onednn_conv(layer) if gains and not slow else None


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this CPU, and this build of PyTorch, has oneDNN's kernels for a dtype."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    conv = Conv2d(1, 1, 1, padding=1, dtype=dtype)
    for layer, order in ((Linear(1, 1, dtype=dtype), ONEDNN_LINEAR), (conv, onednn_conv(conv))):
        x = torch.zeros(1, 1, *layer.weight.shape[2:], dtype=dtype)
        try:
            layer.requires_grad_(False).weight = cast(nn.Parameter, PackedWeight(layer.weight, order))
            layer(x)
        except (RuntimeError, AttributeError):
            return False
    return True
