"""What a method needs: counted parameters, and bytes that agree with what a real run saves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradina.errors import RecipeError
from gradina.pipeline.model import StableDiffusion
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.latents import Crop, LatentDataset, encode_pictures
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.finetune.memory_estimate import (
    BASE_MEMORY,
    Cost,
    activation_memory,
    check_memory,
    estimate,
    free_memory,
    saved_memory,
)
from gradina.training.finetune.methods import dreambooth, finetuning, textual_inversion

CONFIG = FinetuneConfig(steps=6, batch=3, lr=1e-2, warmup=0, rank=2)


@pytest.fixture
def data(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentDataset:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64)).save(tmp_path / "a boat.png")
    return encode_pictures(model, read_image_folder(tmp_path), Crop(), 64 * 64)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [2, None])
def test_the_estimate_is_what_a_forward_pass_saves(
    model: StableDiffusion, data: LatentDataset, rank: int | None, precision: str
) -> None:
    """On fake tensors as many bytes are counted as a real forward pass saves."""
    config = replace(CONFIG, rank=rank, precision=precision)  # type: ignore[arg-type]
    method = finetuning(model, data, config)
    counted = activation_memory(method.state, data.largest, config)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"), saved_memory() as saved:
        loss = method.loss(method.trainable, 0)
    assert loss.requires_grad
    assert counted == pytest.approx(sum(saved.values()), rel=0.1)


def test_checkpointing_needs_less(model: StableDiffusion, data: LatentDataset) -> None:
    sizes = []
    for checkpointing in (False, True):
        config = replace(CONFIG, checkpointing=checkpointing)
        method = finetuning(model, data, config)
        sizes.append(activation_memory(method.state, data.largest, config))
    assert sizes[1] < 0.6 * sizes[0]


def test_parameters_are_counted_once(model: StableDiffusion, data: LatentDataset) -> None:
    everything = sum(p.numel() for part in (model.text, model.vae, model.unet) for p in part.parameters())
    word = estimate(textual_inversion(model, data, "<boat>", "boat", replace(CONFIG, vectors=3)), CONFIG, data.largest)
    assert word.trainable == 3 * 32
    assert word.total == everything
    full = replace(CONFIG, rank=None)
    whole = estimate(finetuning(model, data, full), full, data.largest)
    unet = sum(p.numel() for p in model.unet.parameters())
    assert whole.trainable == unet
    without = estimate(finetuning(model, data, replace(full, ema=0.0)), replace(full, ema=0.0), data.largest)
    assert whole.memory - without.memory == 4 * unet
    saved = activation_memory(finetuning(model, data, full).state, data.largest, full)
    assert without.memory == BASE_MEMORY + 4 * everything + 3 * 4 * unet + saved


def test_class_pictures_need_the_activations_of_another_pass(model: StableDiffusion, data: LatentDataset) -> None:
    one, two = (
        estimate(dreambooth(model, data, class_data, CONFIG), CONFIG, data.largest).memory
        for class_data in (None, data)
    )
    saved = activation_memory(finetuning(model, data, CONFIG).state, data.largest, CONFIG)
    assert two - one == saved


def test_what_does_not_fit_is_refused_with_settings_that_need_less() -> None:
    needed = Cost(10, 100, 23_000_000_000)
    check_memory(needed, CONFIG, None)
    check_memory(needed, CONFIG, 23_000_000_000)
    with pytest.raises(RecipeError, match=r"it needs about 23.0 GB of memory, and 8.0 GB are free; what takes less: "):
        check_memory(needed, CONFIG, 8_000_000_000)
    with pytest.raises(RecipeError, match=r"less: a LoRA instead of all weights \(--rank 8\), no average \(--ema 0\)"):
        check_memory(needed, replace(CONFIG, rank=None), 0)
    with pytest.raises(RecipeError, match=r"less: --dtype bf16, smaller pictures \(--size\)"):
        check_memory(needed, replace(CONFIG, batch=1, checkpointing=True), 0)
    assert free_memory() is None or free_memory() > 10_000_000  # type: ignore[operator]
