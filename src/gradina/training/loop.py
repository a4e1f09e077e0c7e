"""The one training loop: a generator that takes a step, and tells.

Logs, samples, checkpoints and stopping belong to the caller.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from gradina.errors import Diverged, RecipeError
from gradina.runtime.memory import flush_denormals
from gradina.runtime.prepack import channels_last


@dataclass(frozen=True)
class TrainStep:
    """One step that was taken."""

    step: int  # counts from 1
    loss: float  # mean over the batch
    lr: float
    seconds: float  # that the step took


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a stage learns."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100  # steps from 0 to lr
    decay: float = 0.5  # share of the steps, at the end, in which lr falls to 0 along a cosine
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # norm of the gradient
    ema: float = 0.999  # of the weights; 0: none
    accumulate: int = 1  # batches for one step
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name}: got {getattr(self, name)}, expected a number above 0")
        for name in ("decay", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name}: got {getattr(self, name)}, expected 0 to 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RecipeError(f"betas: got {self.betas}, expected two numbers from 0 to below 1")

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers between the layers."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def autocast(self) -> torch.autocast:
        """Within it networks compute in that type."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step (counted from 0): warm-up, constant, cosine to 0."""
        tail = max(1, round(self.decay * self.steps))
        into = max(0, step - (self.steps - tail)) / tail
        fall = 0.5 * (1 + math.cos(math.pi * into)) if self.decay else 1.0
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * fall


@dataclass
class State:
    """All that changes while a stage learns: what a checkpoint keeps."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module
    step: int = field(default=0)

    @classmethod
    def begin(cls, network: nn.Module, settings: Settings, rates: Mapping[str, float] | None = None) -> State:
        """A fresh state: AdamW over all parameters, weight decay on matrices alone, and a copy for the average.

        `rates` names children of the network that learn at a share of the learning rate.
        """
        network = channels_last(network, settings.dtype)
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in network.named_parameters():
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((decay, (rates or {}).get(name.partition(".")[0], 1.0)), []).append(parameter)
        alike = [{"params": params, "weight_decay": decay, "rate": rate} for (decay, rate), params in groups.items()]
        optimizer = torch.optim.AdamW(alike, lr=settings.lr, betas=settings.betas, fused=True)
        ema = copy.deepcopy(network).requires_grad_(False).eval() if settings.ema else network
        return cls(network, optimizer, ema)


Loss = Callable[[nn.Module, int], Tensor]  # (network, key of the batch) -> one number per example


def train(state: State, loss: Loss, settings: Settings) -> Iterator[TrainStep]:
    """Takes the remaining steps. `loss(network, k)` draws its own batch k, so a run can be continued anywhere.

    Raises Diverged when the loss is no longer a number; the weights are then those of the last good step.
    """
    state.network.train()
    while state.step < settings.steps:
        yield _taken(state, loss, settings)


@flush_denormals()
def _taken(state: State, loss: Loss, settings: Settings) -> TrainStep:
    """The next step."""
    start = time.perf_counter()
    lr = settings.lr_at(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["rate"]
    total = 0.0
    for i in range(settings.accumulate):
        with settings.autocast():
            mean = loss(state.network, state.step * settings.accumulate + i).mean() / settings.accumulate
        mean.backward()  # type: ignore[no-untyped-call]
        total += mean.item()
    gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients).item()
    if norm > settings.clip:
        torch._foreach_mul_(gradients, settings.clip / (norm + 1e-6))
    for what, value in (("loss", total), ("gradient", norm)):
        if not math.isfinite(value):
            state.optimizer.zero_grad()
            raise Diverged(f"the {what} is {value} at step {state.step + 1}; try a lower lr than {settings.lr:g}")
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    if state.ema is not state.network:
        average(state.ema, state.network, min(settings.ema, state.step / (state.step + 10)))
    return TrainStep(state.step, total, lr, time.perf_counter() - start)


@torch.no_grad()
def average(ema: nn.Module, network: nn.Module, decay: float) -> None:
    """ema <- decay · ema + (1 - decay) · network, what their norms have seen included."""
    kept: list[Tensor] = [*ema.parameters(), *ema.buffers()]
    new: list[Tensor] = [*network.parameters(), *network.buffers()]
    torch._foreach_lerp_(kept, new, 1 - decay)
