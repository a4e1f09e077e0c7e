"""Engines: other ways to compute a network, each with the call shape that the network has.

eager is PyTorch with native kernels and prepacked weights; compile is `torch.compile`; openvino is OpenVINO. With CUDA
auto and compile replay CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from gradina.kernels.dispatch import available
from gradina.models.vae import AutoencoderKL
from gradina.runtime.cuda_graph import CUDAGraphed
from gradina.runtime.device import Engine
from gradina.runtime.openvino import OpenVINOModule

Call = Callable[..., Tensor]


def with_engine(network: nn.Module, engine: Engine, often: bool = True) -> Call:
    """The network as an engine computes it, with the weights that it has at the first call.

    auto is eager; but on a CPU without the attention kernel it is openvino where an export for the shapes is cached,
    and with CUDA it is CUDA graphs if the network is called `often` with the same shapes.
    """
    one = next(network.parameters())
    device = one.device.type
    if engine == "compile":
        return _compiled(network)
    if engine == "openvino":
        return OpenVINOModule(network)
    if engine == "auto" and device == "cuda" and often:
        return CUDAGraphed(network)
    if engine == "auto" and device == "cpu" and find_spec("openvino") and not available("attention", one.dtype):
        exported = OpenVINOModule(network)
        return lambda *inputs: (exported if exported.is_ready(*inputs) else network)(*inputs)
    return network


def _compiled(network: nn.Module) -> Call:
    """By PyTorch's compiler; with CUDA in channels-last layout and as a CUDA graph."""
    if next(network.parameters()).device.type != "cuda":
        return torch.compile(network, options={"freezing": True})
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = torch.compile(network, options={"triton.cudagraphs": True})
    return lambda *inputs: run(*inputs).clone()  # the next replay writes into the same memory


class VAEDecode(nn.Module):
    """The decoder of an autoencoder as a network of its own: latents (b, 4, h, w) -> pixels."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)
