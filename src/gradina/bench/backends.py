"""Who runs: Gradina, and the peers that are installed. Everyone opens the same folder and gets the same inputs.

On a CPU in fp32 and bf16; elsewhere in fp32 and fp16, and compiled.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gradina.bench.machine import settled
from gradina.bench.timing import Runner
from gradina.bench.workloads import SCALE, Shapes
from gradina.pipeline.load import load
from gradina.runtime.device import DTYPES
from gradina.runtime.engines import Decoding, compiled, graph_of, with_engine

Opener = Callable[[Path, Shapes, str], Runner]  # folder, shapes, which work


def gradina(
    dtype: str, folder: Path, shapes: Shapes, work: str, device: str = "cpu", engine: str = "auto"
) -> Runner:  # fmt: skip
    """Ours."""
    model, given, kind = load(folder, device=device, dtype=dtype, engine=engine), shapes.inputs, DTYPES[dtype]
    unet, decode = with_engine(model.unet, model.engine), with_engine(Decoding(model.vae), model.engine, often=False)
    ids, states, latents = given.ids.to(device), given.states.to(device, kind), given.latents.to(device, kind)
    t = torch.full((2,), 500.0, device=device)

    def step() -> torch.Tensor:
        return _guided(unet(latents.expand(2, -1, -1, -1), t, states))

    return _quietly(
        {"text encoder": lambda: model.text(ids), "U-Net step": step, "decoder": lambda: decode(latents)}[work], device
    )


def diffusers(
    dtype: str, folder: Path, shapes: Shapes, work: str, device: str = "cpu", compiles: bool = False
) -> Runner:  # fmt: skip
    """The reference, as it is or compiled as its documentation says."""
    network: Callable[..., torch.Tensor] = _reference(DTYPES[dtype], folder, work, device)
    inputs = tuple(x.to(device) for x in _inputs(DTYPES[dtype], shapes, work))
    if compiles and work != "text encoder":
        network = torch.compile(network, mode="reduce-overhead", fullgraph=True)
    if work == "U-Net step":
        return _quietly(lambda: _guided(network(*inputs)), device)
    return _quietly(lambda: network(*inputs), device)


def openvino(dtype: str, folder: Path, shapes: Shapes, work: str) -> Runner:
    """The reference, compiled by OpenVINO for these shapes. What is exported lies beside the model, for all types."""
    inputs = _inputs(torch.float32, shapes, work)
    graph = folder.parent / "openvino" / work.replace(" ", "-") / "network.xml"
    if not graph.is_file():
        network = graph_of(_reference(torch.float32, folder, work), inputs)
        import_module("openvino").save_model(network, graph, compress_to_fp16=True)
        del network
        gc.collect()  # what it was made of, of which there are two in fp32
    run = compiled(graph, DTYPES[dtype])
    arrays = [x.numpy() for x in inputs]
    if work == "U-Net step":
        return lambda: _guided(torch.from_numpy(run(arrays)[0]))
    return lambda: run(arrays)


class _Alone(torch.nn.Module):
    """A network of the reference with tensors alone going in and out."""

    def __init__(self, network: Any, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.call(self.network, *inputs)


def _reference(dtype: torch.dtype, folder: Path, work: str, device: str = "cpu") -> _Alone:
    """What the reference runs for a work."""
    peer = import_module("diffusers")
    if work == "text encoder":
        text = import_module("transformers").CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        return _Alone(text.to(device), lambda net, ids: net(ids, return_dict=False)[0])
    if work == "decoder":
        vae = peer.AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
        return _Alone(vae.to(device), lambda net, z: net.decode(z, return_dict=False)[0])
    unet = peer.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    return _Alone(unet.to(device), lambda net, x, t, c: net(x, t, encoder_hidden_states=c, return_dict=False)[0])


def _inputs(dtype: torch.dtype, shapes: Shapes, work: str) -> tuple[torch.Tensor, ...]:
    """What the reference runs on."""
    given = shapes.inputs
    states, latents = given.states.to(dtype), given.latents.to(dtype)
    return {
        "text encoder": (given.ids,),
        "U-Net step": (torch.cat([latents, latents]), torch.tensor(500), states),
        "decoder": (latents / shapes.family.vae.scale,),
    }[work]


PEERS: dict[str, tuple[str | None, Opener]] = {  # the package that each needs
    "gradina fp32": (None, partial(gradina, "fp32")),
    "gradina bf16": (None, partial(gradina, "bf16")),
    "diffusers fp32": ("diffusers", partial(diffusers, "fp32")),
    "diffusers bf16": ("diffusers", partial(diffusers, "bf16")),
    "openvino fp32": ("openvino", partial(openvino, "fp32")),
    "openvino bf16": ("openvino", partial(openvino, "bf16")),
}


def contestants(device: str = "cpu") -> Mapping[str, Opener]:
    """Those that can run there, by name, which ends in the type of their numbers."""
    peers = PEERS if device == "cpu" else elsewhere(device)
    return {name: open_ for name, (package, open_) in peers.items() if package is None or find_spec(package)}


def elsewhere(device: str) -> dict[str, tuple[str | None, Opener]]:
    """Who computes on another device than the CPU, each with the package that it needs."""
    ours, theirs = partial(gradina, device=device), partial(diffusers, device=device)
    return {
        "gradina fp32": (None, partial(ours, "fp32")),
        "gradina fp16": (None, partial(ours, "fp16")),
        "gradina, compiled, fp16": (None, partial(ours, "fp16", engine="compile")),
        "diffusers fp32": ("diffusers", partial(theirs, "fp32")),
        "diffusers fp16": ("diffusers", partial(theirs, "fp16")),
        "diffusers, compiled, fp16": ("diffusers", partial(theirs, "fp16", compiles=True)),
    }


def _guided(pair: torch.Tensor) -> torch.Tensor:
    without, with_ = pair.chunk(2)
    return without + SCALE * (with_ - without)


def _quietly(run: Runner, device: str) -> Runner:
    def quiet() -> object:
        with torch.no_grad():
            made = run()
        settled(device)
        return made

    return quiet
