"""The loop on problems whose solution is known."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradina.errors import RecipeError
from gradina.models.clip import TextConfig
from gradina.models.clip_vision import CLIP, VisionConfig
from gradina.training import loop
from gradina.training.loop import State, autocast, train
from gradina.training.losses import contrastive
from gradina.training.settings import Settings


def key(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line(settings: Settings) -> tuple[State, list[float]]:
    """Fits y = 3 x + 1 by the loop."""
    torch.manual_seed(0)
    state = State.begin(nn.Linear(1, 1), settings)

    def loss(network: nn.Module, k: int) -> Tensor:
        x = torch.randn(16, 1, generator=key(k))
        return ((network(x) - (3 * x + 1)) ** 2).flatten()

    return state, [step.loss for step in train(state, loss, settings)]


def test_the_loop_fits_a_line() -> None:
    state, losses = line(Settings(steps=400, batch=16, lr=0.05, warmup=5, weight_decay=0.0))
    assert losses[-1] < 1e-4 < losses[0]
    assert torch.allclose(state.network.weight, torch.tensor([[3.0]]), atol=0.02)  # type: ignore[arg-type]
    assert torch.allclose(state.ema.bias, torch.tensor([1.0]), atol=0.05)  # type: ignore[arg-type]


def test_accumulated_batches_equal_one_large_batch() -> None:
    def loss_of(size: int) -> object:
        def loss(network: nn.Module, k: int) -> Tensor:
            x = torch.arange(k * size, (k + 1) * size).float()[:, None] / 100
            return ((network(x) - x) ** 2).flatten()

        return loss

    results = []
    for accumulate, size in ((1, 12), (4, 3)):
        torch.manual_seed(0)
        settings = Settings(steps=5, batch=size, lr=0.01, accumulate=accumulate, clip=1e9)
        state = State.begin(nn.Linear(1, 1), settings)
        list(train(state, loss_of(size), settings))  # type: ignore[arg-type]
        results.append(state.network.weight.detach().clone())
    assert torch.allclose(*results, atol=1e-6)


def test_a_loss_of_nan_raises_and_keeps_the_weights() -> None:
    torch.manual_seed(0)
    settings = Settings(steps=10, batch=1, lr=0.1, warmup=0)
    state = State.begin(nn.Linear(1, 1), settings)

    def loss(network: nn.Module, k: int) -> Tensor:
        return (network(torch.ones(1, 1)) * (float("nan") if k == 3 else 1)).flatten()

    with pytest.raises(RecipeError, match=r"the loss is nan at step 4; try a lower lr than 0\.1"):
        list(train(state, loss, settings))
    assert state.step == 3
    assert all(torch.isfinite(p).all() for p in state.network.parameters())


def test_a_gradient_of_nan_raises_and_keeps_the_weights() -> None:
    torch.manual_seed(0)
    settings = Settings(steps=10, batch=1, lr=0.1, warmup=0)
    state = State.begin(nn.Linear(1, 1), settings)

    def loss(network: nn.Module, k: int) -> Tensor:
        return torch.sqrt((network(torch.ones(1, 1)) * (k != 1)).abs()).flatten()

    with pytest.raises(RecipeError, match="the gradient is nan at step 2"):
        list(train(state, loss, settings))
    assert all(torch.isfinite(p).all() for p in state.network.parameters())


def test_clip_learns_to_match_pictures_and_captions() -> None:
    torch.manual_seed(0)
    text = TextConfig(vocabulary=8, length=4, width=16, inner=32, layers=1, heads=2, projection=8, eos=7)
    vision = VisionConfig(size=8, patch=4, width=16, inner=32, layers=1, heads=2, projection=8)
    clip = CLIP(text, vision)
    ids = torch.tensor([[6, i, 7, 7] for i in range(4)])
    pixels = torch.randn(4, 3, 8, 8, generator=key())
    settings = Settings(steps=60, batch=4, lr=5e-3, warmup=1)
    state = State.begin(clip, settings)
    list(train(state, lambda net, k: contrastive(net(ids, pixels), torch.eye(4).bool()), settings))
    assert (clip(ids, pixels).argmax(1) == torch.arange(4)).all()


def test_rates_scale_the_learning_rate_of_children() -> None:
    network = nn.ModuleDict({"slow": nn.Linear(3, 2), "fast": nn.Linear(3, 2)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settings = Settings(steps=1, batch=1, lr=1e-2, warmup=0, decay=0, weight_decay=0, clip=1e9)
    state = State.begin(network, settings, {"slow": 0.25})
    for _ in train(state, lambda net, k: sum((p.sum() for p in net.parameters()), torch.zeros(())), settings):
        pass
    for name, value in network.state_dict().items():  # the first step of AdamW is as long as the rate
        expected = torch.full_like(value, -1e-2 * (0.25 if name.startswith("slow") else 1))
        torch.testing.assert_close(value - before[name], expected, rtol=1e-4, atol=1e-6)


def test_gradients_are_freed_before_the_next_step() -> None:
    """They are as large as what learns."""
    network, seen = nn.Linear(3, 3), list[list[bool]]()
    made: list[weakref.ref[torch.Tensor]] = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: made.append(weakref.ref(p.grad)))

    def loss(network: nn.Module, k: int) -> torch.Tensor:
        seen.append([each() is None for each in made])
        return network(torch.ones(1, 3)).square().mean(1)

    settings = Settings(steps=3, batch=1, lr=1e-3)
    assert len(list(train(State.begin(network, settings), loss, settings))) == 3
    assert seen == [[], [True] * 2, [True] * 4]


def test_autocast_takes_its_device_from_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    on_meta, settings = nn.Linear(1, 1, device="meta"), Settings(steps=1, batch=1, lr=1.0, precision="bfloat16")
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(loop.torch, "autocast", lambda *args, **kwargs: asked.append((*args, kwargs)))
    autocast(on_meta, settings)
    autocast(nn.Linear(1, 1), Settings(steps=1, batch=1, lr=1.0))
    assert asked == [("meta", torch.bfloat16, {"enabled": True}), ("cpu", torch.bfloat16, {"enabled": False})]


def test_bfloat16_is_autocast_in_the_loss_and_not_in_the_weights() -> None:
    settings, seen = Settings(steps=1, batch=1, lr=0.1, precision="bfloat16"), []

    def loss(network: nn.Module, k: int) -> Tensor:
        y = network(torch.ones(1, 1))
        seen.append((y.dtype, torch.is_autocast_enabled("cpu")))
        return y.flatten()

    state = State.begin(nn.Linear(1, 1), settings)
    list(train(state, loss, settings))
    assert seen == [(torch.bfloat16, True)]
    assert {p.dtype for p in state.network.parameters()} == {torch.float32}
