"""Weights in the order in which they are multiplied: to draw on a CPU, so that no call has to order them anew.

A packed layer computes the same, to rounding. It saves, loads, moves and copies as the plain layer that it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.nn.conv2d import Conv2d, is_pointwise, is_three
from gradina.nn.gate import Gate, gated
from gradina.nn.memory import added
from gradina.nn.native import ordinary, ordinary_rows, own_convolution, own_norm, own_product
from gradina.nn.ways import traced

Network = TypeVar("Network", bound=nn.Module)
Convert = Callable[[Tensor], Tensor]
Own = TypeVar("Own")

LARGE = 2**21  # weights of a convolution: smaller ones gain only where norms, too, are quick with channels last
AWKWARD = 48  # convolutions to a multiple of so many channels take oneDNN up to 25 times as long for some maps,
ENOUGH = {torch.bfloat16: 256}  # but not to as many at most
PLAIN = (nn.Conv2d, Conv2d)  # what convolutions are before
NOTHING_FUSED: tuple[str, list[float], str] = ("none", [], "")  # with what the product is followed


class _Packed(nn.Module):
    """What the packed layers share: towards all others they are plain."""

    weight: Tensor
    plain: type[nn.Module]  # what it was

    @staticmethod
    def ordered(layer: Any) -> Tensor:
        """The weight of a plain layer as it is multiplied."""
        raise NotImplementedError

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

    @staticmethod
    def ordered(layer: Any) -> Tensor:
        return _rows_ordered(layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return _rows(x, self.weight, self.out_features, self.bias)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        return _rows(h, self.weight, self.out_features, self.bias, beside=x)

    def dense(self) -> Tensor:
        return _rows_as_they_were(self.weight, self.out_features, self.in_features)


class PackedGate(_Packed, Gate):
    """x (..., in) -> (..., h gate)."""

    @staticmethod
    def ordered(layer: Any) -> Tensor:
        own = own_product(layer.weight.dtype, gates=True)
        assert own is not None
        return own.order(layer.weight.detach(), halves=True)

    def forward(self, x: Tensor) -> Tensor:
        if own := _ours(partial(own_product, gates=True), x, self.weight):
            return own(x, self.weight, self.out_features, self.bias, halves=True)
        return F.linear(x, self.dense(), self.bias)

    def gated(self, x: Tensor) -> Tensor:
        """gelu(gate) · h, at once: (..., width)."""
        if own := _ours(partial(own_product, gates=True), x, self.weight):
            return own(x, self.weight, self.out_features, self.bias, halves=True, gates=True)
        return gated(F.linear(x, self.dense(), self.bias))

    def dense(self) -> Tensor:
        return ordinary_rows(self.weight, self.out_features, self.in_features, halves=True)


class PackedConv2d(_Packed, nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h', w'), padded with zeros."""

    @staticmethod
    def ordered(layer: Any) -> Tensor:
        how = ([*layer.padding], [*layer.stride], [*layer.dilation], layer.groups)
        return torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *how, None)

    def forward(self, x: Tensor) -> Tensor:
        if _learns(x):
            return self._conv_forward(x, self.dense(), self.bias)
        how = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *how, *NOTHING_FUSED)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        how: Any = (self.padding, self.stride, self.dilation, self.groups, "add", None, None, [], None)
        return torch.ops.mkldnn._convolution_pointwise.binary(h, x, self.weight, self.bias, *how)


class PackedThree(_Packed, nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h, w) by a 3x3 convolution, padded by one: in C."""

    @staticmethod
    def ordered(layer: Any) -> Tensor:
        own = own_convolution(layer.weight.dtype)
        assert own is not None
        return own.order(layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(x)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        return self._convolved(h, beside=x)

    def grown(self, x: Tensor) -> Tensor:
        """self(doubled(x)), at once."""
        return self._convolved(x, grows=2)

    def dense(self) -> Tensor:
        return ordinary(self.weight, self.out_channels, self.in_channels)

    def _convolved(self, x: Tensor, beside: Tensor | None = None, grows: int = 1) -> Tensor:
        if own := _ours(own_convolution, x, self.weight):
            return own(x, self.weight, self.out_channels, self.bias, beside, grows)
        made = self._conv_forward(doubled(x) if grows == 2 else x, self.dense(), self.bias)
        return made if beside is None else made + beside


class PackedPointwise(_Packed, nn.Conv2d):
    """x (b, in, h, w) -> (b, out, h, w) by a 1x1 convolution: to each place, what a linear layer is to each token."""

    @staticmethod
    def ordered(layer: Any) -> Tensor:
        return _rows_ordered(layer.weight.detach().flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return _rows(_last(x), self.weight, self.out_channels, self.bias).permute(0, 3, 1, 2)

    def plus(self, h: Tensor, x: Tensor) -> Tensor:
        """self(h) + x, at once."""
        return _rows(_last(h), self.weight, self.out_channels, self.bias, beside=_last(x)).permute(0, 3, 1, 2)

    def dense(self) -> Tensor:
        return _rows_as_they_were(self.weight, self.out_channels, self.in_channels)[:, :, None, None]


PACKED = PackedLinear | PackedConv2d | PackedThree | PackedPointwise


def plus(layer: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """layer(h) + x: at once, where the layer is packed and nothing learns."""
    if isinstance(layer, PACKED) and not torch.is_grad_enabled() and h.dtype == x.dtype:
        return layer.plus(h, x)
    return added(layer(h), x)


def gated_by(layer: nn.Module, x: Tensor) -> Tensor:
    """gelu(gate) · h for the halves of layer(x): at once, where the layer can do that."""
    return layer.gated(x) if isinstance(layer, PackedGate) else gated(layer(x))


def grown(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(doubled(x)): at once, where the layer can do that."""
    if isinstance(layer, PackedThree):
        return layer.grown(x)
    return cast(Tensor, layer(doubled(x)))


def doubled(x: Tensor) -> Tensor:
    """x (b, c, h, w) with each place four times: (b, c, 2h, 2w)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


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


def pack(layer: nn.Module, kind: type[nn.Module]) -> None:
    """A plain layer becomes one of a packed kind, which must be for such layers."""
    assert issubclass(kind, _Packed)
    weight, plain = kind.ordered(layer), type(layer)
    _become(layer, kind, weight)
    cast(_Packed, layer).plain = plain


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


def _way(layer: nn.Module, convert: Convert | None = None) -> type[_Packed] | None:
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
        for layer, kind, x in (
            (nn.Linear(1, 1, dtype=dtype), PackedLinear, line),
            (nn.Conv2d(1, 1, 1, padding=1, dtype=dtype), PackedConv2d, square),
        ):
            pack(layer.requires_grad_(False), kind)
            layer(x)
    except (RuntimeError, AttributeError):
        return False
    return dtype in (torch.float32, torch.bfloat16)


def _become(layer: nn.Module, kind: type[nn.Module], weight: Tensor) -> None:
    layer.__class__ = kind
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _unpack(layer: _Packed) -> None:
    _become(layer, layer.plain, layer.dense())


def _rows_ordered(weight: Tensor) -> Tensor:
    """Weights (out, in) as rows are multiplied by them."""
    own = own_product(weight.dtype)
    return own.order(weight) if own else torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _rows_as_they_were(ordered: Tensor, out: int, width: int) -> Tensor:
    return ordered.to_dense() if ordered.is_mkldnn else ordinary_rows(ordered, out, width)


def _rows(x: Tensor, ordered: Tensor, out: int, bias: Tensor | None, beside: Tensor | None = None) -> Tensor:
    """x (..., in) -> (..., out), by ordered weights, plus what is beside it."""
    if ordered.is_mkldnn and not _learns(x):
        if beside is None:
            return torch.ops.mkldnn._linear_pointwise(x, ordered, bias, *NOTHING_FUSED)
        return torch.ops.mkldnn._linear_pointwise.binary(x, beside, ordered, bias, "add")
    if not ordered.is_mkldnn and (own := _ours(own_product, x, ordered)):
        return own(x, ordered, out, bias, beside)
    made = F.linear(x, _rows_as_they_were(ordered, out, x.shape[-1]), bias)
    return made if beside is None else made + beside


def _last(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h, w, c)"""
    return x.permute(0, 2, 3, 1)


def _ours(find: Callable[[torch.dtype], Own | None], x: Tensor, weight: Tensor) -> Own | None:
    """What multiplies x by a weight in C; None where it cannot be had, or something learns or looks on."""
    return None if x.dtype != weight.dtype or _learns(x) or traced(x) else find(x.dtype)


def _learns(x: Tensor) -> bool:
    """Whether a gradient is to go through: oneDNN's products have none."""
    return torch.is_grad_enabled() and x.requires_grad
