"""Chooses the fast path: inference, training, or plain PyTorch under tracing and compilation."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

Result = TypeVar("Result")


def is_inference(x: Tensor) -> bool:
    """Whether kernels for inference may run: x is on a CPU, gradients are disabled, and nothing is traced."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced(x)


def is_training(x: Tensor) -> bool:
    """Whether kernels with a backward may run: x is on a CPU, gradients are enabled, and nothing is traced.

    Fake tensors that only measure memory count as training.
    """
    counted = isinstance(x, FakeTensor) and not torch.compiler.is_compiling()
    return x.device.type == "cpu" and torch.is_grad_enabled() and (counted or not is_traced(x))


def once_differentiable(backward: Callable[..., Result]) -> Callable[..., Result]:
    """A backward in C, which has no backward of its own. Raises RuntimeError where one is asked for."""

    @wraps(backward)
    def checked(*given: Any) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of gradients were asked for (create_graph=True), and the native kernels have none: "
                "set GRADINA_NATIVE=0 in the environment to train without them"
            )
        return backward(*given)

    return checked


def is_traced(x: Tensor) -> bool:
    """Whether x is seen by a compiler or tracer, or only stands for a tensor, so that it needs PyTorch's operations."""
    stands_for_one = type(x) not in (Tensor, nn.Parameter)
    return stands_for_one or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
