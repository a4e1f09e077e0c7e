"""Who runs: Gradina, and the peers that are installed. Everyone opens the same folder and gets the same inputs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gradina.bench.race import Runner
from gradina.bench.work import SCALE, Shapes
from gradina.engines import compiled, graph_of
from gradina.pipeline import load
from gradina.runtime import DTYPES

Opener = Callable[[Path, Shapes, str], Runner]  # folder, shapes, which work


def gradina(dtype: str, folder: Path, shapes: Shapes, work: str) -> Runner:
    """Ours."""
    model, given, kind = load(folder, device="cpu", dtype=dtype), shapes.inputs, DTYPES[dtype]
    states, latents = given.states.to(kind), given.latents.to(kind)
    t = torch.full((2,), 500.0)

    def step() -> torch.Tensor:
        return _guided(model.unet(latents.expand(2, -1, -1, -1), t, states))

    return _quietly(
        {
            "text encoder": lambda: model.text(given.ids),
            "U-Net step": step,
            "decoder": lambda: model.vae.decode(latents),
        }[work]
    )


def diffusers(dtype: str, folder: Path, shapes: Shapes, work: str) -> Runner:
    """The reference."""
    network, inputs = _reference(DTYPES[dtype], folder, work), _inputs(DTYPES[dtype], shapes, work)
    if work == "U-Net step":
        return _quietly(lambda: _guided(network(*inputs)))
    return _quietly(lambda: network(*inputs))


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


def _reference(dtype: torch.dtype, folder: Path, work: str) -> _Alone:
    """What the reference runs for a work."""
    peer = import_module("diffusers")
    if work == "text encoder":
        text = import_module("transformers").CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        return _Alone(text, lambda net, ids: net(ids, return_dict=False)[0])
    if work == "decoder":
        vae = peer.AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
        return _Alone(vae, lambda net, z: net.decode(z, return_dict=False)[0])
    unet = peer.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    return _Alone(unet, lambda net, x, t, c: net(x, t, encoder_hidden_states=c, return_dict=False)[0])


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


def contestants() -> Mapping[str, Opener]:
    """Those that can run here, by name."""
    return {name: open_ for name, (package, open_) in PEERS.items() if package is None or find_spec(package)}


def _guided(pair: torch.Tensor) -> torch.Tensor:
    without, with_ = pair.chunk(2)
    return without + SCALE * (with_ - without)


def _quietly(run: Runner) -> Runner:
    def quiet() -> object:
        with torch.inference_mode():
            return run()

    return quiet
