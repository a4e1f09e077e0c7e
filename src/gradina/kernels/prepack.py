"""Weights in the order in which a kernel reads them, so that no call has to reorder them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from gradina.kernels.bindings import Kernel, native
from gradina.kernels.gemm import Conv3x3Kernel, LinearKernel, conv3x3_weight, linear_weight

OPAQUE: Any = torch._mkldnn  # type: ignore[attr-defined]  # the layout of oneDNN's tensors

NativeKernel = TypeVar("NativeKernel", bound=Kernel)


@dataclass(frozen=True, eq=False)
class Order:
    """The order of values in memory that a kernel wants of its weights, and back."""

    name: str
    native: bool  # whether it is of a kernel in C, else of oneDNN
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, torch.Size], Tensor]
    geometry: tuple[Any, ...] = ()  # padding, stride, dilation and groups of a convolution by oneDNN


def _native(kind: type[NativeKernel], weight: Tensor) -> NativeKernel:
    kernel = native(kind, weight.dtype)
    assert kernel is not None
    return kernel


LINEAR = Order(  # of linear layers (out, in), and of 1x1 convolutions (out, in, 1, 1)
    "linear",
    True,
    lambda weight: _native(LinearKernel, weight).reorder(weight.flatten(1)),
    lambda packed, shape: linear_weight(packed, shape[0], shape[1]).reshape(shape),
)
GEGLU = Order(
    "geglu",
    True,
    lambda weight: _native(LinearKernel, weight).reorder(weight, halves=True),
    lambda packed, shape: linear_weight(packed, shape[0], shape[1], halves=True),
)
CONV3X3 = Order(
    "conv3x3",
    True,
    lambda weight: _native(Conv3x3Kernel, weight).reorder(weight),
    lambda packed, shape: conv3x3_weight(packed, shape[0], shape[1]),
)
ONEDNN_LINEAR = Order(  # of the same as LINEAR
    "onednn_linear",
    False,
    lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1), None),
    lambda packed, shape: packed.to_dense().reshape(shape),
)


def onednn_conv(conv: nn.Conv2d) -> Order:
    """The order for one convolution."""
    geometry = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
    return Order(
        "onednn_conv",
        False,
        lambda weight: torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, None),
        lambda packed, shape: packed.to_dense(),
        geometry,
    )


class PackedWeight(Tensor):
    """A fixed weight in a kernel's order, of which all but that kernel sees the plain values.

    Every PyTorch operation gets the plain tensor, so the weight is saved, moved, copied and merged as if it were that.
    Like oneDNN's own its layout is opaque, which makes `Module.to` put a plain parameter in its place. `copy_` reorders
    what it is given; any other operation that would write to it raises RuntimeError.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    order: Order
    packed: Tensor

    @staticmethod
    def __new__(cls, plain: Tensor, order: Order) -> PackedWeight:
        self: Any = Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype, layout=OPAQUE)
        self.order, self.packed = order, order.pack(plain.detach())
        self._is_param = True  # as nn.Parameter() does, but that wants detach() to return another of these
        return cast(PackedWeight, self)

    def plain(self) -> Tensor:
        """The weight in PyTorch's order."""
        return self.order.unpack(self.packed, self.shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        return nn.Parameter(self.plain(), requires_grad=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(self.plain(), requires_grad=False).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten._to_dense.default:
            return args[0].plain()
        if func is torch.ops.aten.copy_.default and isinstance(args[0], cls):
            args[0].packed = args[0].order.pack(args[1].to(args[0].dtype))
            return args[0]
        if func._schema.is_mutable and any(isinstance(x, cls) for x in tree_leaves(args[0])):
            raise RuntimeError(f"{func}: this weight is prepacked, and so read-only; restore() its network first")
        kwargs = {name: x for name, x in (kwargs or {}).items() if x is not OPAQUE}
        return func(*tree_map_only(cls, cls.plain, args), **tree_map_only(cls, cls.plain, kwargs))
