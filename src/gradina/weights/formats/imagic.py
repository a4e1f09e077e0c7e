"""Imagic files: text states, fine-tuned towards a picture, and perhaps a LoRA of the U-Net."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from gradina.adapters.lora import LoRA
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.formats.lora import STATES, lora_state_dict
from gradina.weights.safetensors import open_weights, save_weights


def write_imagic(states: Tensor, lora: LoRA, path: str | PathLike[str], unet: UNet, text: TextTower) -> None:
    """Writes text states (n, width), and the LoRA where there is one. Raises DiskError."""
    save_weights({STATES: states.detach().float(), **lora_state_dict(lora, unet, text)}, Path(path))


def read_states(path: str | PathLike[str], width: int) -> Tensor:
    """The text states (n, width) of an Imagic file. Raises WeightsError where there are none, or of another width."""
    states = open_weights(Path(path)).tensors.get(STATES)
    if states is None or states.ndim != 2:
        raise WeightsError(f"{path}: is no edit (it has no states); expected a file that `gradina imagic` made")
    if states.shape[1] != width:
        raise WeightsError(f"{path}: its states are {states.shape[1]} wide, this model's {width}; take its own model")
    if not torch.isfinite(states).all():
        raise WeightsError(f"{path}: its states hold NaN or infinite values; make it again with `gradina imagic`")
    return states
