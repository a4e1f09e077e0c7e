"""Imagic files: text states with a LoRA, read and written; other files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gradina.adapters.lora import LoRA
from gradina.errors import WeightsError
from gradina.pipeline.model import StableDiffusion
from gradina.weights.formats.imagic import read_imagic, read_states, write_imagic
from gradina.weights.formats.lora import read_lora

Tiny = Callable[..., StableDiffusion]


def test_round_trip(tiny_model: Tiny, tmp_path: Path, random_layers: Any, assert_same_lora: Any) -> None:
    model, path = tiny_model("sd1"), tmp_path / "edit.safetensors"
    states = torch.randn(77, 32, generator=torch.Generator().manual_seed(0))
    lora = LoRA(unet=random_layers(model.unet, 1))
    write_imagic(states, lora, path, model.unet, model.text)
    assert torch.equal(read_states(path, 32), states)
    assert_same_lora(read_lora(path, model.unet, model.text), lora)
    both = read_imagic(path, model.unet, model.text)
    assert torch.equal(both[0], states)
    assert_same_lora(both[1], lora)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.ones(77, 32)}, "is no edit"),
        ({"states": torch.ones(32)}, "is no edit"),
        ({"states": torch.ones(77, 16)}, "its states are 16 wide, this model's 32"),
        ({"states": torch.full((77, 32), float("nan"))}, "its states hold NaN or infinite values"),
    ],
)
def test_other_states_are_refused(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=f"^{path}: {message}"):
        read_states(path, 32)
