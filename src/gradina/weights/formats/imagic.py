"""Imagic files: the text states that were fitted to a picture, with the LoRA of the U-Net where there is one."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from gradina.adapters.lora import LoRA
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.formats.lora import STATES, lora_of, lora_state_dict
from gradina.weights.safetensors import Weights, open_weights, save_weights


def read_imagic(path: str | PathLike[str], unet: UNet, text: TextTower) -> tuple[Tensor, LoRA]:
    """The text states (n, width) and the LoRA of a file. Raises WeightsError for one that is none or does not fit."""
    file = open_weights(Path(path))
    return _states_of(file, text.config.width), lora_of(file, unet, text)


def read_states(path: str | PathLike[str], width: int) -> Tensor:
    """The text states (n, width) of a file. Raises WeightsError where there are none, or of another width."""
    return _states_of(open_weights(Path(path)), width)


def write_imagic(states: Tensor, lora: LoRA, path: str | PathLike[str], unet: UNet, text: TextTower) -> None:
    """Writes text states (n, width), and the LoRA where there is one. Raises DiskError."""
    save_weights({STATES: states.detach().float(), **lora_state_dict(lora, unet, text)}, Path(path))


def _states_of(file: Weights, width: int) -> Tensor:
    path, states = file.path, file.tensors.get(STATES)
    if states is None or states.ndim != 2:
        raise WeightsError(f"{path}: is no edit (it has no states); expected a file that `gradina imagic` made")
    if states.shape[1] != width:
        raise WeightsError(f"{path}: its states are {states.shape[1]} wide, this model's {width}; take its own model")
    if not torch.isfinite(states).all():
        raise WeightsError(f"{path}: its states hold NaN or infinite values; make it again with `gradina imagic`")
    return states
