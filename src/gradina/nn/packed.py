"""Weights in the order in which oneDNN multiplies them: to draw on a CPU, so that no call has to order them anew.

A packed layer computes the same, to rounding. It saves, loads, moves and copies as the plain layer that it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.memory import added

Network = TypeVar("Network", bound=nn.Module)
Convert = Callable[[Tensor], Tensor]

LARGE = 2**21  # weights of a convolution: smaller ones gain little, and at some sizes of maps take fifty times as long
NOTHING_FUSED: tuple[str, list[float], str] = ("none", [], "")  # with what the product is followed


class _Packed(nn.Module):
    """What the packed layers share: towards all others they are plain."""

    weight: Tensor
    plain: type[nn.Module]

    def dense(self) -> Tensor:
        """The weight as it was."""
        return self.weight.to_dense()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.dense()

    def _load_from_state_dict(self, *args: Any) -> None:
        _unpack(self)
        self._load_from_state_dict(*args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        _unpack(self)
        return self._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        other = copy.copy(self)
        _unpack(other)
        return copy.deepcopy(other, memo)


class PackedLinear(_Packed, nn.Linear):
    """x (..., in) -> (..., out)."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        if _learns(x):
            return F.linear(x, self.dense(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *NOTHING_FUSED)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        return torch.ops.mkldnn._linear_pointwise.binary(h, x, self.weight, self.bias, "add")


class PackedConv2d(_Packed, nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h', w'), padded with zeros."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        if _learns(x):
            return self._conv_forward(x, self.dense(), self.bias)
        how = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *how, *NOTHING_FUSED)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        how: Any = (self.padding, self.stride, self.dilation, self.groups, "add", None, None, [], None)
        return torch.ops.mkldnn._convolution_pointwise.binary(h, x, self.weight, self.bias, *how)


class PackedPointwise(_Packed, nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h, w) by a 1x1 convolution: to each place, what a linear layer is to each token."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        if _learns(x):
            return self._conv_forward(x, self.dense(), self.bias)
        tokens = x.permute(0, 2, 3, 1)
        made = torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, *NOTHING_FUSED)
        return made.permute(0, 3, 1, 2)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        tokens, beside = h.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
        return torch.ops.mkldnn._linear_pointwise.binary(tokens, beside, self.weight, self.bias, "add").permute(
            0, 3, 1, 2
        )

    def dense(self) -> Tensor:
        return super().dense()[:, :, None, None]


def plus(layer: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """layer(h) + x: at once, where the layer is packed and nothing learns."""
    if (
        isinstance(layer, PackedLinear | PackedConv2d | PackedPointwise)
        and not torch.is_grad_enabled()
        and h.dtype == x.dtype
    ):
        return layer.plus(h, x)
    return added(layer(h), x)


def packed(network: Network, convert: Convert | None = None) -> Network:
    """The network itself, its linear layers and large convolutions packed if they can be: fixed weights, on a CPU.

    What a packed convolution gives has its channels last in memory. So where there is one, all others follow, and those
    of 1x1 are packed as what they then are, linear layers. With `convert` each layer's numbers are converted just
    before they are packed: no more than one layer is there twice.
    """
    last = any(type(m) is nn.Conv2d and m.weight.numel() >= LARGE for m in network.modules())
    for layer in network.modules():
        if convert is not None:
            _renumber(layer, convert)
        if type(layer) is nn.Linear and _can_be(layer):
            _pack(layer)
        elif type(layer) is nn.Conv2d and last and layer.padding_mode == "zeros" and _can_be(layer):
            if _is_pointwise(layer) or layer.weight.numel() >= LARGE:
                _pack(layer)
            else:
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
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


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def unpacked(network: Network) -> Network:
    """The network itself, with its weights as plain as they were: to learn on."""
    for layer in network.modules():
        if isinstance(layer, _Packed):
            _unpack(layer)
    return network


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this processor, and this build of PyTorch, has such products for numbers of that type."""
    line, square = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    try:
        for layer, x in ((nn.Linear(1, 1, dtype=dtype), line), (nn.Conv2d(1, 1, 1, padding=1, dtype=dtype), square)):
            _pack(layer.requires_grad_(False))
            layer(x)
    except (RuntimeError, AttributeError):
        return False
    return dtype in (torch.float32, torch.bfloat16)


def _pack(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        _become(layer, PackedLinear, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None))
    elif isinstance(layer, nn.Conv2d) and _is_pointwise(layer):
        order = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().flatten(1), None)
        _become(layer, PackedPointwise, order)
    elif isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
        how = ([*layer.padding], [*layer.stride], [*layer.dilation], layer.groups)
        order = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *how, None)
        _become(layer, PackedConv2d, order)


def _become(layer: nn.Module, kind: type[nn.Module], weight: Tensor) -> None:
    layer.__class__ = kind
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _unpack(layer: _Packed) -> None:
    _become(layer, layer.plain, layer.dense())


def _learns(x: Tensor) -> bool:
    """Whether a gradient is to go through: oneDNN's products have none."""
    return torch.is_grad_enabled() and x.requires_grad
