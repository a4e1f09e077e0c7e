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

    `variant` ("fp16") chooses among a folder's files; `prediction` (eps, v, x0) overrides what was detected; numbers
    are bf16 on a CPU that multiplies in it, fp32 on another and fp16 elsewhere, unless `dtype` (fp32, bf16, fp16) or
    $GRADINA_DTYPE says otherwise; `engine` is one of auto, eager, compile and openvino; `plain` leaves weights in the
    order in which they can learn; with `low_memory` one network at a time is in memory; `tiny` is a tiny decoder for
    previews: a folder, a file, or an "owner/name" (madebyollin/taesd); `vae` is an autoencoder in place of the model's
    own: a safetensors file of it or of a whole checkpoint, a folder, or an "owner/name". Raises WeightsError, HubError
    where the hub does not answer, RequestError for a device that is not there or has no such engine, MissingExtra.
    """
    from gradina.weights.formats.taesd import read_taesd
    from gradina.weights.open import open_source

    place = pick_device(device)
    chosen = pick_engine(engine, place)
    numbers = pick_dtype(dtype, place)
    if low_memory and (place.type != "cpu" or chosen in ("compile", "openvino")):
        raise RequestError(f"low_memory: is for the CPU and engine eager, not for {place} and {chosen}")
    parts = open_source(source, variant=variant, prediction=prediction, vae=vae)
    files = (*parts.files, *parts.vae_files)
    previewer = None if tiny is None else read_taesd(tiny, parts.vae.config)
    convert = partial(to_dtype, dtype=numbers, mapped=MappedFiles(*files))
    for network in (previewer,) if low_memory else (parts.text, parts.vae, parts.unet, previewer):
        packs = not plain and (chosen in ("auto", "eager") or network not in (parts.vae, parts.unet))
        if network is not None and place.type == "cpu" and packs:
            prepack(network, convert)
        elif network is not None:
            converted(network, convert).to(place)
    trim_heap()
    return StableDiffusion(
        **{f.name: getattr(parts, f.name) for f in fields(parts)},
        engine=chosen,
        offload=SequentialOffload(numbers, files) if low_memory else None,
        tiny=previewer,
    )


def push(model: StableDiffusion, name: str, *, private: bool = False) -> str:
    """Puts a model on the hub as "owner/name", in the layout of diffusers; its address, or a HubError."""
    from gradina.weights.hub import push as pushed

    return pushed(model, name, private=private)
