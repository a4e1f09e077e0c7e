"""A model from a name, a folder or a file, and back to the hub."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from os import PathLike

import torch

from gradina.errors import RequestError
from gradina.pipeline.model import StableDiffusion
from gradina.runtime.device import pick_device, pick_dtype, pick_engine
from gradina.runtime.memory import trim_heap
from gradina.runtime.offload import SequentialOffload
from gradina.runtime.prepack import converted, prepack
from gradina.weights.safetensors import MappedFiles, to_dtype


def load(
    source: str | PathLike[str] | None = None,
    *,
    variant: str | None = None,
    prediction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    engine: str = "auto",
    plain: bool = False,
    low_memory: bool = False,
    tiny: str | PathLike[str] | None = None,
    vae: str | PathLike[str] | None = None,
) -> StableDiffusion:
    """A model, ready to draw: a shipped one, a folder, a file, or an "owner/name" of the hub; None: the shipped one.

    `variant` ("fp16") chooses among a folder's files; `prediction` (eps, v, x0) overrides the detected one; `dtype`
    (fp32, bf16, fp16, or else $GRADINA_DTYPE) is by default bf16 on a CPU that multiplies in it, fp32 on another, and
    fp16 elsewhere; `engine` is one of auto, eager, compile and openvino; `plain` skips prepacking, so that weights can
    be trained; `low_memory` keeps one network at a time in memory; `tiny` is a tiny decoder for previews: a folder, a
    file, or an "owner/name" (madebyollin/taesd); `vae` replaces the model's autoencoder: by a safetensors file of one
    or of a whole checkpoint, a folder, or an "owner/name". Raises WeightsError, HubError where the hub does not answer,
    RequestError for a device that is not there or has no such engine, MissingExtra.
    """
    from gradina.weights.formats.taesd import read_taesd
    from gradina.weights.open import open_source

    device = pick_device(device)
    chosen, dtype = pick_engine(engine, device), pick_dtype(dtype, device)
    if low_memory and (device.type != "cpu" or chosen in ("compile", "openvino")):
        raise RequestError(f"low_memory: is for the CPU and engine eager, not for {device} and {chosen}")
    components = open_source(source, variant=variant, prediction=prediction, vae=vae)
    files = (*components.files, *components.vae_files)
    decoder = None if tiny is None else read_taesd(tiny, components.vae.config)
    convert = partial(to_dtype, dtype=dtype, mapped=MappedFiles(*files))
    networks = (components.text, components.vae, components.unet)
    for network in (decoder,) if low_memory else (*networks, decoder):
        packs = not plain and (chosen in ("auto", "eager") or network not in networks[1:])
        if network is not None and device.type == "cpu" and packs:
            prepack(network, convert)
        elif network is not None:
            converted(network, convert).to(device)
    trim_heap()
    return StableDiffusion(
        **{field.name: getattr(components, field.name) for field in fields(components)},
        engine=chosen,
        offload=SequentialOffload(dtype, files) if low_memory else None,
        tiny=decoder,
    )


def push(model: StableDiffusion, name: str, *, private: bool = False) -> str:
    """Uploads a model to the hub as "owner/name", in the layout of diffusers; returns its URL. Raises HubError."""
    from gradina.weights.hub import push as pushed

    return pushed(model, name, private=private)
