"""Gradina, and the peers that are installed, on the same folder and inputs: in two dtypes, eager and compiled."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gradina.bench.machine import dtypes, synchronize
from gradina.bench.timing import Runner
from gradina.bench.workloads import GUIDANCE_SCALE, Shapes
from gradina.pipeline.load import load
from gradina.runtime.device import DTYPES
from gradina.runtime.engines import VAEDecode, with_engine
from gradina.runtime.openvino import compile_model, convert_model

Opener = Callable[[Path, Shapes, str], Runner]  # folder, shapes, workload


def gradina(
    dtype: str, folder: Path, shapes: Shapes, workload: str, device: str = "cpu", compile: bool = False
) -> Runner:  # fmt: skip
    """Gradina, with the engine that it picks, or compiled."""
    model = load(folder, device=device, dtype=dtype, engine="compile" if compile else "auto")
    unet, decode = with_engine(model.unet, model.engine), with_engine(VAEDecode(model.vae), model.engine, often=False)
    ids, states, latents = (x.to(device) for x in shapes.inputs)
    states, latents, t = states.to(model.dtype), latents.to(model.dtype), torch.full((2,), 500.0, device=device)
    runners: dict[str, Callable[[], torch.Tensor]] = {
        "text encoder": lambda: model.text(ids),
        "U-Net step": lambda: _guided(unet(latents.expand(2, -1, -1, -1), t, states)),
        "decoder": lambda: decode(latents),
    }
    return _synchronized(runners[workload], device)


def diffusers(
    dtype: str, folder: Path, shapes: Shapes, workload: str, device: str = "cpu", compile: bool = False
) -> Runner:  # fmt: skip
    """diffusers, eager or compiled as its documentation recommends."""
    network: Callable[..., torch.Tensor] = _reference(DTYPES[dtype], folder, workload, device)
    inputs = tuple(x.to(device) for x in _inputs(DTYPES[dtype], shapes, workload))
    if compile and workload != "text encoder":
        network = torch.compile(network, mode="reduce-overhead", fullgraph=True)
    if workload == "U-Net step":
        return _synchronized(lambda: _guided(network(*inputs)), device)
    return _synchronized(lambda: network(*inputs), device)


def openvino(dtype: str, folder: Path, shapes: Shapes, workload: str) -> Runner:
    """diffusers' networks, exported and compiled by OpenVINO for these shapes; all dtypes share one export."""
    inputs = _inputs(torch.float32, shapes, workload)
    graph = folder.parent / "openvino" / workload.replace(" ", "-") / "network.xml"
    if not graph.is_file():
        network = convert_model(_reference(torch.float32, folder, workload), inputs)
        import_module("openvino").save_model(network, graph, compress_to_fp16=True)
        del network
        gc.collect()  # two copies of the weights in fp32
    run = compile_model(graph, DTYPES[dtype])
    arrays = [x.numpy() for x in inputs]
    if workload == "U-Net step":
        return lambda: _guided(torch.from_numpy(run(arrays)[0]))
    return lambda: run(arrays)


class _TensorsOnly(torch.nn.Module):
    """A diffusers network with only tensors as arguments and results, for export."""

    def __init__(self, network: Any, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.call(self.network, *inputs)


def _reference(dtype: torch.dtype, folder: Path, workload: str, device: str = "cpu") -> _TensorsOnly:
    peer = import_module("diffusers")
    if workload == "text encoder":
        text = import_module("transformers").CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        return _TensorsOnly(text.to(device), lambda net, ids: net(ids, return_dict=False)[0])
    if workload == "decoder":
        vae = peer.AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
        return _TensorsOnly(vae.to(device), lambda net, z: net.decode(z, return_dict=False)[0])
    unet = peer.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype).to(device)
    return _TensorsOnly(unet, lambda net, x, t, c: net(x, t, encoder_hidden_states=c, return_dict=False)[0])


def _inputs(dtype: torch.dtype, shapes: Shapes, workload: str) -> tuple[torch.Tensor, ...]:
    ids, states, latents = shapes.inputs
    states, latents = states.to(dtype), latents.to(dtype)
    return {
        "text encoder": (ids,),
        "U-Net step": (torch.cat([latents, latents]), torch.tensor(500), states),
        "decoder": (latents / shapes.family.vae.scale,),
    }[workload]


def backends(device: str = "cpu") -> dict[str, Opener]:
    """The backends that are installed, by a name that ends in the dtype."""
    if device != "cpu":
        return accelerator_backends(device)
    openers = {"gradina": gradina, "diffusers": diffusers, "openvino": openvino}
    installed = {name: opener for name, opener in openers.items() if find_spec(name)}
    return {f"{name} {dtype}": partial(opener, dtype) for name, opener in installed.items() for dtype in dtypes(device)}


def accelerator_backends(device: str) -> dict[str, Opener]:
    """The installed backends on a device other than the CPU."""
    found: dict[str, Opener] = {}
    for name, opener in (("gradina", gradina), ("diffusers", diffusers)):
        if find_spec(name):
            on_device = partial(opener, device=device)
            found |= {f"{name} {dtype}": partial(on_device, dtype) for dtype in ("fp32", "fp16")}
            found[f"{name}, compiled, fp16"] = partial(on_device, "fp16", compile=True)
    return found


def _guided(pair: torch.Tensor) -> torch.Tensor:
    uncond, cond = pair.chunk(2)
    return uncond + GUIDANCE_SCALE * (cond - uncond)


def _synchronized(run: Runner, device: str) -> Runner:
    def runner() -> object:
        with torch.no_grad():
            result = run()
        synchronize(device)
        return result

    return runner
