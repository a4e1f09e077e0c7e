"""Who runs: Gradina, and the peers that are installed. Everyone opens the same folder and gets the same inputs."""

from __future__ import annotations

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
    network, inputs = _reference(DTYPES[dtype], folder, shapes, work)
    if work == "U-Net step":
        return _quietly(lambda: _guided(network(*inputs)))
    return _quietly(lambda: network(*inputs))


def openvino(dtype: str, folder: Path, shapes: Shapes, work: str) -> Runner:
    """The reference, compiled by OpenVINO for these shapes."""
    network, inputs = _reference(torch.float32, folder, shapes, work)
    run = compiled(graph_of(network, inputs), DTYPES[dtype])
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


def _reference(
    dtype: torch.dtype, folder: Path, shapes: Shapes, work: str
) -> tuple[_Alone, tuple[torch.Tensor, ...]]:  # fmt: skip
    """What the reference runs for a work, and on what."""
    given = shapes.inputs
    states, latents = given.states.to(dtype), given.latents.to(dtype)
    peer = import_module("diffusers")
    if work == "text encoder":
        text = import_module("transformers").CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        return _Alone(text, lambda net, ids: net(ids, return_dict=False)[0]), (given.ids,)
    if work == "decoder":
        vae = peer.AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
        scaled = latents / vae.config.scaling_factor
        return _Alone(vae, lambda net, z: net.decode(z, return_dict=False)[0]), (scaled,)
    unet = peer.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    both = torch.cat([latents, latents])
    step = _Alone(unet, lambda net, x, t, c: net(x, t, encoder_hidden_states=c, return_dict=False)[0])
    return step, (both, torch.tensor(500), states)


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
