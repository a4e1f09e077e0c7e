"""The one training loop: a generator that yields after each step.

Logs, samples, checkpoints and stopping belong to the caller. A network is trained on the device of its parameters; all
randomness is drawn on the CPU, by (seed, step), and then moved, so that a run has the same batches on every device.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradina.errors import Diverged
from gradina.runtime.memory import flush_denormals
from gradina.runtime.prepack import channels_last
from gradina.training.muon import Muon, hidden_matrices
from gradina.training.settings import Settings


@dataclass(frozen=True)
class TrainStep:
    """A step that was taken."""

    step: int  # counts from 1
    loss: float  # mean over the batch
    lr: float
    seconds: float


def device_of(network: nn.Module) -> torch.device:
    """The device of its parameters, to which batches are moved."""
    return next(network.parameters()).device


def autocast(network: nn.Module, settings: Settings) -> torch.autocast:
    """Mixed precision where the settings ask for it, on the device of the network's parameters."""
    return torch.autocast(device_of(network).type, torch.bfloat16, enabled=settings.precision == "bfloat16")


@dataclass
class State:
    """All that changes during training: what a checkpoint keeps."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module
    step: int = 0

    @classmethod
    def begin(cls, network: nn.Module, settings: Settings, rates: Mapping[str, float] | None = None) -> State:
        """A fresh state: an optimizer of all parameters, weight decay on matrices alone, and a copy to average (EMA).

        `rates` are factors of the learning rate for children of the network, by name.
        """
        network = channels_last(network, getattr(torch, settings.precision))
        hidden = hidden_matrices(network) if settings.optimizer == "muon" else set()
        groups: dict[tuple[float, float, bool], list[Tensor]] = {}
        for name, parameter in network.named_parameters():
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            rate = (rates or {}).get(name.partition(".")[0], 1.0)
            groups.setdefault((decay, rate, name in hidden), []).append(parameter)
        param_groups = [
            {"params": params, "weight_decay": decay, "rate": rate, "orthogonal": orthogonal}
            for (decay, rate, orthogonal), params in groups.items()
        ]
        kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
        optimizer = kind(param_groups, lr=settings.lr, betas=settings.betas, fused=True)
        ema = copy.deepcopy(network).requires_grad_(False).eval() if settings.ema else network
        return cls(network, optimizer, ema)


Loss = Callable[[Any, int], Tensor]  # (the network in training, number of the batch) -> (b,)


def train(state: State, loss: Loss, settings: Settings) -> Iterator[TrainStep]:
    """Takes the remaining steps. `loss(network, k)` draws its own batch k, so a run can be resumed at any step.

    Raises Diverged when the loss or the gradient is not finite; the weights are then those of the last good step.
    """
    state.network.train()
    while state.step < settings.steps:
        yield _step(state, loss, settings)


@flush_denormals()
def _step(state: State, loss: Loss, settings: Settings) -> TrainStep:
    """Forward, backward, clipping, optimizer, average."""
    start = time.perf_counter()
    lr = settings.lr_at(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["rate"]
    total = 0.0
    for i in range(settings.accumulate):
        with autocast(state.network, settings):
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
    """ema <- decay · ema + (1 - decay) · network, buffers included."""
    averaged: list[Tensor] = [*ema.parameters(), *ema.buffers()]
    new: list[Tensor] = [*network.parameters(), *network.buffers()]
    torch._foreach_lerp_(averaged, new, 1 - decay)
