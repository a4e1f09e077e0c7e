"""Files of edits, as Imagic makes them: states of a text, moved towards a picture, and perhaps a LoRA of the U-Net."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from gradina.adapters.lora import LoRA
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.formats.lora import STATES, named
from gradina.weights.safetensors import open_weights, save_weights


def write_edit(states: Tensor, lora: LoRA, path: str | PathLike[str], unet: UNet, text: TextTower) -> None:
    """Writes states (n, width), and the LoRA where there is one. Raises DiskError."""
    save_weights({STATES: states.detach().float(), **named(lora, unet, text)}, Path(path))


def read_states(path: str | PathLike[str], width: int) -> Tensor:
    """The states (n, width) of an edit. Raises WeightsError for a file that holds none, or of another width."""
    states = open_weights(Path(path)).tensors.get(STATES)
    if states is None or states.ndim != 2:
        raise WeightsError(f"{path}: is no edit (it has no states); expected a file that `gradina imagic` made")
    if states.shape[1] != width:
        raise WeightsError(f"{path}: its states are {states.shape[1]} wide, this model's {width}; take its own model")
    if not torch.isfinite(states).all():
        raise WeightsError(f"{path}: its states hold NaN or infinite values; make it again with `gradina imagic`")
    return states
