"""OpenVINO: a network is exported once for each shape of its inputs, into the cache, and computed on the CPU."""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradina.errors import DiskError
from gradina.files import atomic_folder, cache_folder
from gradina.weights.safetensors import digest

BATCH = 2  # examples that go through a network together: with a guided picture's two, two shapes are all

Shapes = tuple[tuple[int, ...], ...]

log = logging.getLogger(__name__)


class OpenVINOModule:
    """A network as OpenVINO computes it: tensors in, one tensor out, all with the batch in front."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.compiled: dict[Shapes, Any] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        return torch.cat([self._run(part) for part in _batches(inputs)]).to(inputs[0].dtype)

    def is_ready(self, *inputs: Tensor) -> bool:
        """Whether the exports for these inputs are in the cache."""
        return all(self.path(_shapes(part)).is_file() for part in _batches(inputs))

    @cached_property
    def weights(self) -> str:
        """A hash of the network's weights as they are in memory, where they may have been cast or changed."""
        return digest(self.network)

    def path(self, shapes: Shapes) -> Path:
        """The file of the export for inputs of such shapes."""
        what = (type(self.network).__name__, self.weights, shapes, version("openvino"), version("gradina"))
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        return cache_folder() / "openvino" / name / "network.xml"

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        shapes = _shapes(inputs)
        if shapes not in self.compiled:
            self.compiled[shapes] = self._compile(inputs)
        return torch.from_numpy(self.compiled[shapes]([x.float().numpy() for x in inputs])[0])

    def _compile(self, inputs: tuple[Tensor, ...]) -> Any:
        path = self.path(_shapes(inputs))
        if not path.is_file():
            log.info("exports for OpenVINO what is kept for the next time: inputs of %s", _shapes(inputs))
            self._export(inputs, path)
        return compile_model(path, next(self.network.parameters()).dtype)

    def _export(self, inputs: tuple[Tensor, ...], path: Path) -> None:
        model = convert_model(copy.deepcopy(self.network).float().eval(), tuple(x.float() for x in inputs))
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(path.parent) as folder:
                import_module("openvino").save_model(model, folder / path.name, compress_to_fp16=True)
        except DiskError:
            if not path.is_file():  # else another process was faster
                raise


def convert_model(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """A network as OpenVINO's model for inputs of exactly these shapes."""
    convert = import_module("openvino").convert_model
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes become constants, which is what is wanted
        return convert(network, example_input=inputs, input=[tuple(x.shape) for x in inputs])


def compile_model(model: Any, dtype: torch.dtype) -> Any:
    """A model, or its file, ready to run on the CPU in a dtype, with as many threads as PyTorch."""
    hint = "bf16" if dtype == torch.bfloat16 else "f32"
    how = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return import_module("openvino").Core().compile_model(model, "CPU", how)


def _batches(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(x, BATCH) for x in inputs), strict=True)


def _shapes(inputs: tuple[Tensor, ...]) -> Shapes:
    return tuple(tuple(x.shape) for x in inputs)
