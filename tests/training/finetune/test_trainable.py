"""The networks in training: text states, recomputed layers, the denoising loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from gradina.errors import RecipeError
from gradina.pipeline.model import StableDiffusion
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.finetune.memory_estimate import activation_memory
from gradina.training.finetune.methods import finetuning
from gradina.training.finetune.trainable import Trainable, prepared
from gradina.training.losses import denoising_loss

LONG = "a boat " * 60


def test_recomputed_layers_give_the_same_gradients_and_save_less(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig
) -> None:
    sizes, results = [], []
    saved: list[int] = []
    for checkpointing in (False, True):
        saved.clear()
        method = finetuning(model, data, replace(config, checkpointing=checkpointing))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.nbytes), x)[1], lambda x: x):
            loss = method.loss(method.trainable, 0).mean()
        loss.backward()
        sizes.append(sum(saved))
        grads = [p.grad for p in method.trainable.parameters()]
        assert all(g is not None for g in grads)
        results.append((loss.item(), torch.cat([g.flatten() for g in grads if g is not None])))
    assert sizes[1] < sizes[0] / 2
    assert results[0][0] == results[1][0]
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.parametrize("text_rate", [0.0, 0.5])
def test_long_captions_are_encoded_in_chunks_as_prompts_are(
    model: StableDiffusion,
    data: LatentDataset,
    config: FinetuneConfig,
    caplog: pytest.LogCaptureFixture,
    text_rate: float,
) -> None:
    """Whole, in chunks; shorter ones in the same batch get empty chunks."""
    data = replace(data, captions=(("a red boat", LONG),))
    method = finetuning(model, data, replace(config, text_rate=text_rate))
    (note,) = caplog.messages
    chunks = model.tokenizer.chunk_count(LONG)
    assert chunks > 1
    assert note.startswith("captions: 1 of 2 are longer than the 75 tokens that the text tower reads at once")
    assert f"in up to {chunks} chunks" in note
    texts = ["a red boat", LONG, "", "a red boat"]
    with torch.no_grad():
        assert torch.allclose(method.state.states(texts), model.encode_text(texts).states, atol=1e-6)
        assert torch.allclose(
            method.state.states(["a red boat", ""]), model.encode_text(["a red boat", ""]).states, atol=1e-6
        )
    method.loss(method.trainable, 0).mean().backward()
    several = activation_memory(method.state, (4, 8, 8), config)
    method.state.chunks = 1
    assert activation_memory(method.state, (4, 8, 8), config) < several


def test_texts_are_encoded_once_and_cached(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finetuning(model, data, config)
    assert set(first.state.cached) == {"", "a red boat", "a blue boat"}
    again = finetuning(model, data, config)
    monkeypatch.setattr(again.state, "_encoded", None)
    assert torch.equal(again.loss(again.trainable, 0), first.loss(first.trainable, 0))
    with torch.no_grad():  # as what is cached was encoded
        states = model.text(model.tokenizer(["a red boat"]))[0]
    assert torch.equal(again.state.cached["a red boat"], states)


def test_parameters_are_found_by_the_names_that_they_have_in_the_networks(
    model: StableDiffusion, config: FinetuneConfig
) -> None:
    _, trainable, export = prepared(model, replace(config, rank=None, text_rate=0.5))
    for part in ("unet", "text"):
        values = trainable.values(part)
        assert list(values) == [name for name, _ in getattr(model, part).named_parameters()]
        assert all(torch.equal(values[name], p) for name, p in getattr(model, part).named_parameters())
    assert trainable.values("word") == {}
    assert not export.lora
    names = list(Trainable({"unet": {"down.0.conv": torch.nn.Parameter(torch.zeros(1))}}).state_dict())
    assert names == ["unet.down/0/conv"], "as checkpoints have them"


def test_the_loss_follows_the_noise_law_of_the_config(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig
) -> None:
    """Every option of the law changes the loss of each method, as it changes `denoising_loss`."""
    latents, cond = data.batch(2, torch.Generator().manual_seed(0))[0], model.encode_text(["a boat"] * 2)
    losses = []
    for law in ({}, {"shift": 3.0}, {"interval": (0.5, 2.0)}, {"noise_offset": 0.5}, {"min_snr": 1.0}):
        changed = replace(config, **law)  # type: ignore[arg-type]
        state, _, _ = prepared(model, changed)
        loss = state.loss(latents, cond, torch.Generator().manual_seed(1)).detach()
        again = denoising_loss(state.denoiser, latents, cond, torch.Generator().manual_seed(1), changed)
        assert torch.equal(loss, again)
        losses.append(loss)
    assert all(not torch.equal(losses[0], other) for other in losses[1:])


def test_an_interval_without_noise_levels_is_refused_before_training(
    model: StableDiffusion, config: FinetuneConfig
) -> None:
    with pytest.raises(
        RecipeError, match=r"interval: got 20 to 30, which holds no noise level; they go from 0\.0292 to"
    ):
        prepared(model, replace(config, interval=(20.0, 30.0)))


def test_the_loss_is_computed_on_the_device_of_the_unet(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig
) -> None:
    """On the meta device, whose tensors do not mix with those of the CPU."""
    latents, cond = data.batch(2, torch.Generator().manual_seed(0))[0], model.encode_text(["a boat"] * 2)
    moved = replace(model, unet=copy.deepcopy(model.unet).to("meta"))
    for rank in (2, None):
        state, trainable, _ = prepared(moved, replace(config, rank=rank, noise_offset=0.1, min_snr=5.0))
        assert {p.device.type for p in trainable.parameters()} == {"meta"}
        loss = state.loss(latents, cond, torch.Generator().manual_seed(1))
        assert loss.device.type == "meta"
        assert len(loss) == 2
