"""Checkpoints: states come back as they were, and cached tensors as they were computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradina.errors import RecipeError
from gradina.training.checkpoint import cached_tensors, load_state, save_state, steps_done
from gradina.training.loop import State, train
from gradina.training.settings import Settings

SETTINGS = Settings(steps=6, batch=1, lr=0.1, warmup=0)


def loss(network: nn.Module, k: int) -> Tensor:
    x = torch.full((1, 1, 3, 3), k / 10)
    error: Tensor = (network(x) - 1) ** 2
    return error.flatten()


def state(memory_format: torch.memory_format = torch.contiguous_format) -> State:
    torch.manual_seed(0)
    return State.begin(nn.Conv2d(1, 2, 3).to(memory_format=memory_format), SETTINGS)  # type: ignore[call-overload]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_state_resumes_bit_identically(tmp_path: Path, memory_format: torch.memory_format) -> None:
    whole, begun, resumed = state(memory_format), state(memory_format), state(memory_format)
    list(train(whole, loss, SETTINGS))
    for step in train(begun, loss, SETTINGS):
        if step.step == 3:
            break
    save_state(begun, tmp_path / "state", "mark")
    assert steps_done(tmp_path / "state", "mark") == 3
    load_state(resumed, tmp_path / "state", "mark")
    list(train(resumed, loss, SETTINGS))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
        assert torch.equal(whole.ema.state_dict()[name], resumed.ema.state_dict()[name]), name


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save_state(state(), tmp_path / "state", "mark")
    with pytest.raises(RecipeError, match="is of another recipe, other pictures or settings; choose another --out"):
        load_state(state(), tmp_path / "state", "another")
    (tmp_path / "state").write_bytes(b"no state")
    with pytest.raises(RecipeError, match="not a training state"):
        load_state(state(), tmp_path / "state", "mark")


def test_cached_tensors_are_contiguous_from_the_first_call_on(tmp_path: Path) -> None:
    """Sums over another layout differ in their last bits, and with them whatever is learnt."""
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        found = cached_tensors(tmp_path / "made.safetensors", "mark", lambda: {"latents": last})["latents"]
        assert torch.equal(found, last)
        assert found.is_contiguous()
