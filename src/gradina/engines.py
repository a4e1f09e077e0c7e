"""Engines: other ways to compute a network, each with the call shape that the network has.

eager is PyTorch with our own attention and packed weights; compile is `torch.compile`; openvino exports a network once
for each shape of its inputs, into the cache.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradina.files import cache_folder
from gradina.models.vae import AutoencoderKL
from gradina.nn.native import own_attention
from gradina.nn.packed import unpacked
from gradina.runtime import Engine

AT_ONCE = 2  # examples that go through an exported network together: with a guided picture's two, two shapes are all

log = logging.getLogger(__name__)

Call = Callable[..., Tensor]
Shapes = tuple[tuple[int, ...], ...]


def engaged(network: nn.Module, engine: Engine, weights: Callable[[], str]) -> Call:
    """The network as an engine computes it; `weights` names, when it is asked for, what the network was made from.

    auto is eager, but where our own attention does not run and an export for the shapes is ready, that.
    """
    if engine == "compile":
        return torch.compile(network, options={"freezing": True})
    if engine == "openvino":
        return Exported(network, weights)
    if engine == "auto" and find_spec("openvino") and own_attention(next(network.parameters()).dtype) is None:
        exported = Exported(network, weights)
        return lambda *inputs: (exported if exported.is_ready(*inputs) else network)(*inputs)
    return network


class Exported:
    """A network as OpenVINO computes it, on a CPU: tensors go in, one comes out, all with the batch in front."""

    def __init__(self, network: nn.Module, weights: Callable[[], str]) -> None:
        self.network, self._weights = network, weights
        self.compiled: dict[Shapes, Any] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        outputs = [self._run(part) for part in zip(*(torch.split(x, AT_ONCE) for x in inputs), strict=True)]
        return torch.cat(outputs).to(inputs[0].dtype)

    def is_ready(self, *inputs: Tensor) -> bool:
        """Whether what these inputs ask for is in the cache."""
        parts = zip(*(torch.split(x, AT_ONCE) for x in inputs), strict=True)
        return all(self.path(_shapes(part)).is_file() for part in parts)

    @cached_property
    def weights(self) -> str:
        """The name of what the network was made from."""
        return self._weights()

    def path(self, shapes: Shapes) -> Path:
        """Where the export for inputs of such shapes is kept."""
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
        bfloat = next(self.network.parameters()).dtype == torch.bfloat16
        how = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat else "f32"}
        openvino = import_module("openvino")
        return openvino.Core().compile_model(path, "CPU", how | {"INFERENCE_NUM_THREADS": torch.get_num_threads()})

    def _export(self, inputs: tuple[Tensor, ...], path: Path) -> None:
        openvino = import_module("openvino")
        plain = unpacked(copy.deepcopy(self.network)).float().eval()
        graph = graph_of(plain, tuple(x.float() for x in inputs))
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent.parent) as room:
            openvino.save_model(graph, Path(room) / "made" / path.name, compress_to_fp16=True)
            try:
                (Path(room) / "made").rename(path.parent)
            except OSError:  # somebody else was quicker
                if not path.is_file():
                    shutil.rmtree(path.parent, ignore_errors=True)
                    (Path(room) / "made").rename(path.parent)


def graph_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """A network as OpenVINO's graph for inputs of exactly these shapes."""
    convert = import_module("openvino").convert_model
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes become constants, which is what is wanted
        return convert(network, example_input=inputs, input=[tuple(x.shape) for x in inputs])


class Decoding(nn.Module):
    """The way back of an autoencoder as a network of its own: latents (b, 4, h, w) -> pixels."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


def digest(*networks: nn.Module) -> str:
    """A name for weights that came from no file."""
    names = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            names.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return names.hexdigest()[:16]


def _shapes(inputs: tuple[Tensor, ...]) -> Shapes:
    return tuple(tuple(x.shape) for x in inputs)
