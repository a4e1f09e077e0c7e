"""Which way a layer goes: numbers are all that is wanted of it, or it learns, or somebody looks on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

Result = TypeVar("Result")


def drawing(x: Tensor) -> bool:
    """Whether numbers are all that is wanted of x: on a CPU, without gradients, and nobody looks on."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not traced(x)


def learning(x: Tensor) -> bool:
    """Whether a gradient may be wanted of what becomes of x: on a CPU, and nobody looks on but who counts memory."""
    counted = isinstance(x, FakeTensor) and not torch.compiler.is_compiling()
    return x.device.type == "cpu" and torch.is_grad_enabled() and (counted or not traced(x))


def once(back: Callable[..., Result]) -> Callable[..., Result]:
    """A way back in C, which has none itself.

    Raises RuntimeError where one is asked for.
    """

    @wraps(back)
    def way(*given: Any) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "slopes of slopes were asked for (create_graph=True), and our kernels have none: "
                "set GRADINA_NATIVE=0 in the environment to learn without them"
            )
        return back(*given)

    return way


def traced(x: Tensor) -> bool:
    """Whether a compiler, a tracer, or what only stands for a tensor, must see operations of PyTorch."""
    stands_for_one = type(x) not in (Tensor, nn.Parameter)
    return stands_for_one or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
