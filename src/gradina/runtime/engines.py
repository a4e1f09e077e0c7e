"""Engines: other ways to compute a network, each with the call shape that the network has.

eager is PyTorch with our own attention and packed weights; compile is `torch.compile`; openvino exports a network once
for each shape of its inputs, into the cache. With CUDA, auto and compile replay what was recorded: only a GPU can test
that (tests/runtime/test_devices.py, last on an H200).
"""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradina.errors import DiskError
from gradina.files import atomic_folder, cache_folder
from gradina.kernels.dispatch import available
from gradina.models.vae import AutoencoderKL
from gradina.runtime.device import Engine
from gradina.weights.safetensors import digest

RECORDINGS = 4  # that are kept of a network with CUDA, each with the memory that its maps take
AT_ONCE = 2  # examples that go through an exported network together: with a guided picture's two, two shapes are all

log = logging.getLogger(__name__)

Call = Callable[..., Tensor]
Shapes = tuple[tuple[int, ...], ...]


def with_engine(network: nn.Module, engine: Engine, often: bool = True) -> Call:
    """The network as an engine computes it, with the weights that it has when it is first asked.

    auto is eager, but on a CPU, where our own attention does not run and an export for the shapes is ready, that; and
    with CUDA a recording, if it is asked `often` for the same shapes.
    """
    one = next(network.parameters())
    if engine == "compile":
        return _compiled(network)
    if engine == "openvino":
        return Exported(network)
    if engine == "auto" and one.device.type == "cuda" and often:
        return CUDAGraphed(network)
    if (
        engine == "auto"
        and one.device.type == "cpu"
        and find_spec("openvino")
        and not available("attention", one.dtype)
    ):
        exported = Exported(network)
        return lambda *inputs: (exported if exported.is_ready(*inputs) else network)(*inputs)
    return network


def _compiled(network: nn.Module) -> Call:
    """By PyTorch's compiler; with CUDA channels last, and replayed."""
    if next(network.parameters()).device.type != "cuda":
        return torch.compile(network, options={"freezing": True})
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = torch.compile(network, options={"triton.cudagraphs": True})
    return lambda *inputs: run(*inputs).clone()  # the next replay writes into the same memory


class CUDAGraphed:
    """A network with CUDA, replayed: its thousand kernels start at once, where to start each takes longer than it.

    A shape of inputs is recorded when it is met for the second time: at the first, the libraries make ready.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.recordings: dict[Shapes, CapturedGraph | None] = {}
        self.lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = _shapes(inputs)
        if torch.is_grad_enabled():
            return cast(Tensor, self.network(*inputs))
        with self.lock, torch.inference_mode(False), torch.no_grad():  # in this order: it would allow gradients
            if shapes not in self.recordings:
                self.recordings[shapes] = None
                return cast(Tensor, self.network(*inputs))
            recording = self.recordings.pop(shapes) or _recorded(self.network, inputs)
            self.recordings[shapes] = recording
            for other in list(self.recordings)[:-RECORDINGS]:
                del self.recordings[other]
            for place, x in zip(recording.inputs, inputs, strict=True):
                place.copy_(x)
            recording.graph.replay()
            return recording.output.clone()


@dataclass(frozen=True)
class CapturedGraph:
    """What is started at once, where it reads, and where it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


def _recorded(network: nn.Module, inputs: tuple[Tensor, ...]) -> CapturedGraph:
    places = tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = network(*places)
    return CapturedGraph(graph, places, output)


class Exported:
    """A network as OpenVINO computes it, on a CPU: tensors go in, one comes out, all with the batch in front."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.compiled: dict[Shapes, Any] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        return torch.cat([self._run(part) for part in _parts(inputs)]).to(inputs[0].dtype)

    def is_ready(self, *inputs: Tensor) -> bool:
        """Whether what these inputs ask for is in the cache."""
        return all(self.path(_shapes(part)).is_file() for part in _parts(inputs))

    @cached_property
    def weights(self) -> str:
        """A name for the network's own weights: files would not tell in which numbers they were read, and changed."""
        return digest(self.network)

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
        return compiled(path, next(self.network.parameters()).dtype)

    def _export(self, inputs: tuple[Tensor, ...], path: Path) -> None:
        plain = copy.deepcopy(self.network).float().eval()
        graph = graph_of(plain, tuple(x.float() for x in inputs))
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(path.parent) as folder:
                import_module("openvino").save_model(graph, folder / path.name, compress_to_fp16=True)
        except DiskError:
            if not path.is_file():  # else somebody was quicker
                raise


def graph_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """A network as OpenVINO's graph for inputs of exactly these shapes."""
    convert = import_module("openvino").convert_model
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes become constants, which is what is wanted
        return convert(network, example_input=inputs, input=[tuple(x.shape) for x in inputs])


def compiled(graph: Any, dtype: torch.dtype) -> Any:
    """A graph, or the path of one, ready to run on the CPU in such numbers with as many threads as PyTorch."""
    hint = "bf16" if dtype == torch.bfloat16 else "f32"
    how = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return import_module("openvino").Core().compile_model(graph, "CPU", how)


class Decoding(nn.Module):
    """The decoder of an autoencoder as a network of its own: latents (b, 4, h, w) -> pixels."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


def _parts(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(x, AT_ONCE) for x in inputs), strict=True)


def _shapes(inputs: tuple[Tensor, ...]) -> Shapes:
    return tuple(tuple(x.shape) for x in inputs)
