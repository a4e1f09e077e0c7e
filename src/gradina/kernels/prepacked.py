"""Weights in the order in which they are multiplied: to draw on a CPU, so that no call has to order them anew.

A packed layer computes the same, to rounding. It saves, loads, moves and copies as the plain layer that it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.kernels.dispatch import is_traced
from gradina.kernels.gemm import ordinary, ordinary_rows, own_convolution, own_product
from gradina.nn.geglu import Gate, gated
from gradina.nn.memory import added

Own = TypeVar("Own")

NOTHING_FUSED: tuple[str, list[float], str] = ("none", [], "")  # with what the product is followed


class Packed(nn.Module):
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
        unpack(self)
        self._load_from_state_dict(*args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        unpack(self)
        return self._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        other = copy.copy(self)
        unpack(other)
        return copy.deepcopy(other, memo)


class PackedLinear(Packed, nn.Linear):
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


class PackedGate(Packed, Gate):
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


class PackedConv2d(Packed, nn.Conv2d):
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


class PackedThree(Packed, nn.Conv2d):
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


class PackedPointwise(Packed, nn.Conv2d):
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


def pack(layer: nn.Module, kind: type[nn.Module]) -> None:
    """A plain layer becomes one of a packed kind, which must be for such layers."""
    assert issubclass(kind, Packed)
    weight, plain = kind.ordered(layer), type(layer)
    _become(layer, kind, weight)
    cast(Packed, layer).plain = plain


def _become(layer: nn.Module, kind: type[nn.Module], weight: Tensor) -> None:
    layer.__class__ = kind
    layer.weight = nn.Parameter(weight, requires_grad=False)


def unpack(layer: Packed) -> None:
    """A packed layer becomes what it was."""
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
    return None if x.dtype != weight.dtype or _learns(x) or is_traced(x) else find(x.dtype)


def _learns(x: Tensor) -> bool:
    """Whether a gradient is to go through: oneDNN's products have none."""
    return torch.is_grad_enabled() and x.requires_grad
