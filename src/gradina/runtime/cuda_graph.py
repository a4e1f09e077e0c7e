"""CUDA graphs: a network's thousand kernels are launched at once, where each launch takes longer than its kernel.

Only a GPU can test this (tests/runtime/test_devices.py, last on an H200).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

MAX_GRAPHS = 4  # that are kept of a network, each with the memory of its feature maps

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CapturedGraph:
    """A graph, the memory that it reads and the memory that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CUDAGraphed:
    """A network on CUDA that is captured in a graph on the second call with some shapes, and replayed from then on.

    On the first call the libraries choose their kernels.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.graphs: dict[Shapes, CapturedGraph | None] = {}
        self.lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = tuple(tuple(x.shape) for x in inputs)
        if torch.is_grad_enabled():
            return cast(Tensor, self.network(*inputs))
        with self.lock, torch.inference_mode(False), torch.no_grad():  # in this order: it would allow gradients
            if shapes not in self.graphs:
                self.graphs[shapes] = None
                return cast(Tensor, self.network(*inputs))
            captured = self.graphs.pop(shapes) or _capture(self.network, inputs)
            self.graphs[shapes] = captured
            for other in list(self.graphs)[:-MAX_GRAPHS]:
                del self.graphs[other]
            for to, x in zip(captured.inputs, inputs, strict=True):
                to.copy_(x)
            captured.graph.replay()
            return captured.output.clone()


def _capture(network: nn.Module, inputs: tuple[Tensor, ...]) -> CapturedGraph:
    inputs = tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = network(*inputs)
    return CapturedGraph(graph, inputs, output)
