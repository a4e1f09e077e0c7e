"""What a method will need: counted parameters, and bytes that agree with what is kept when it really runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradina.errors import RecipeError
from gradina.pipeline.model import StableDiffusion
from gradina.training.data.buckets import Crop
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.latents import LatentDataset, encode_pictures
from gradina.training.finetune.memory_estimate import (
    ALWAYS,
    Cost,
    cost,
    free_memory,
    kept_for_the_way_back,
    refuse_too_much,
    weighed,
)
from gradina.training.finetune.methods import dreambooth, finetuning, inversion
from gradina.training.finetune.trainable import Owning

Tiny = Callable[..., StableDiffusion]
HOW = Owning(steps=6, batch=3, lr=1e-2, warmup=0, rank=2)


@pytest.fixture
def owned(tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentDataset:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64)).save(tmp_path / "a boat.png")
    return encode_pictures(tiny_model("sd1"), read_image_folder(tmp_path), Crop(), 64 * 64)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [2, None])
def test_what_is_counted_is_what_is_kept(
    tiny_model: Tiny, owned: LatentDataset, rank: int | None, precision: str
) -> None:
    """Of a real forward pass, with numbers, as many bytes are kept as were counted without."""
    how = replace(HOW, rank=rank, precision=precision)  # type: ignore[arg-type]
    learning = finetuning(tiny_model("sd1"), owned, how)
    counted = kept_for_the_way_back(learning.live, owned.largest, how)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"), weighed() as kept:
        loss = learning.loss(learning.learner, 0)
    assert loss.requires_grad
    assert counted == pytest.approx(sum(kept.values()), rel=0.1)


def test_recomputing_keeps_less(tiny_model: Tiny, owned: LatentDataset) -> None:
    sizes = []
    for checkpointing in (False, True):
        how = replace(HOW, checkpointing=checkpointing)
        learning = finetuning(tiny_model("sd1"), owned, how)
        sizes.append(kept_for_the_way_back(learning.live, owned.largest, how))
    assert sizes[1] < 0.6 * sizes[0]


def test_parameters_are_counted_once(tiny_model: Tiny, owned: LatentDataset) -> None:
    model = tiny_model("sd1")
    everything = sum(p.numel() for part in (model.text, model.vae, model.unet) for p in part.parameters())
    word = cost(inversion(model, owned, "<boat>", "boat", replace(HOW, vectors=3)), HOW, owned.largest)
    assert word.learning == 3 * 32
    assert word.all == everything
    full = replace(HOW, rank=None)
    all_of_it = cost(finetuning(model, owned, full), full, owned.largest)
    unet = sum(p.numel() for p in model.unet.parameters())
    assert all_of_it.learning == unet
    without = cost(finetuning(model, owned, replace(full, ema=0.0)), replace(full, ema=0.0), owned.largest)
    assert all_of_it.memory - without.memory == 4 * unet
    kept = kept_for_the_way_back(finetuning(model, owned, full).live, owned.largest, full)
    assert without.memory == ALWAYS + 4 * everything + 3 * 4 * unet + kept


def test_pictures_of_the_class_are_another_pass(tiny_model: Tiny, owned: LatentDataset) -> None:
    one, two = (
        cost(dreambooth(tiny_model("sd1"), owned, others, HOW), HOW, owned.largest).memory for others in (None, owned)
    )
    kept = kept_for_the_way_back(finetuning(tiny_model("sd1"), owned, HOW).live, owned.largest, HOW)
    assert two - one == kept


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    needed = Cost(10, 100, 23_000_000_000)
    refuse_too_much(needed, HOW, None)
    refuse_too_much(needed, HOW, 23_000_000_000)
    with pytest.raises(RecipeError, match=r"it needs about 23.0 GB of memory, and 8.0 GB are free; what takes less: "):
        refuse_too_much(needed, HOW, 8_000_000_000)
    with pytest.raises(RecipeError, match=r"less: a LoRA instead of all weights \(--rank 8\), no average \(--ema 0\)"):
        refuse_too_much(needed, replace(HOW, rank=None), 0)
    with pytest.raises(RecipeError, match=r"less: --dtype bf16, smaller pictures \(--size\)"):
        refuse_too_much(needed, replace(HOW, batch=1, checkpointing=True), 0)
    assert free_memory() is None or free_memory() > 10_000_000  # type: ignore[operator]
