"""Estimates what a method needs before it starts: trainable parameters, and memory, on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradina.errors import RecipeError
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.finetune.methods import Method
from gradina.training.finetune.trainable import FinetuneState, Recomputed
from gradina.training.loop import autocast, device_of

BASE_MEMORY = 420_000_000  # bytes: Python, PyTorch and their caches


@dataclass(frozen=True)
class Cost:
    """Trainable parameters, all parameters, and the memory at most, in bytes."""

    trainable: int
    total: int
    memory: int

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        return f"trains {self.trainable:,} parameters, {share:.2g} % of the model's; about {self.memory / 1e9:.1f} GB"


def estimate(method: Method, config: FinetuneConfig, shape: tuple[int, ...]) -> Cost:
    """The cost of a method for latents of a shape (c, h, w): weights, gradients, moments, average, activations."""
    model, trainable = method.state.model, list(method.trainable.parameters())
    parts = [model.text, model.vae, model.unet]
    held = [*trainable, *(p for part in parts for p in part.parameters())]
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in held}
    copies = 4 if config.ema else 3  # fp32 values for each trainable one: gradient, two moments, average
    count, total = sum(p.numel() for p in trainable), sum(p.numel() for part in parts for p in part.parameters())
    activations = method.passes * activation_memory(method.state, shape, config)
    return Cost(count, total, BASE_MEMORY + sum(weights.values()) + 4 * copies * count + activations)


def activation_memory(state: FinetuneState, shape: tuple[int, ...], config: FinetuneConfig) -> int:
    """Bytes that a forward pass for latents of a shape (c, h, w) saves for the backward; nothing is computed.

    Recomputed layers save their input, and the largest of them, at one time, its activations.
    """
    inputs: list[int] = []
    inside: list[int] = []

    def weigh(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Recomputed)
        with saved_memory() as saved:
            layer.layer(*args)
        inputs.append(args[0].numel() * args[0].element_size())
        inside.append(sum(saved.values()))

    layers = [layer for layer in state.unet.modules() if isinstance(layer, Recomputed)]
    hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
    ids, device = state.tokenizer([""] * config.batch * state.chunks), device_of(state.unet)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), autocast(state.unet, config), saved_memory() as saved:
            with torch.set_grad_enabled(state.trains_text):
                states = state.text(ids.to(device))
            cond = states.reshape(config.batch, -1, states.shape[-1])
            x, t = (torch.zeros(config.batch, *size, device=device) for size in (shape, ()))
            state.unet(x, t, cond)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(saved.values()) + sum(inputs) + max(inside, default=0)


@contextmanager
def saved_memory() -> Iterator[dict[int, int]]:
    """Bytes of all tensors that are saved for the backward meanwhile, by storage; parameters do not count."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no other storage gets the same address

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            held.append(x)
            sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


def free_memory() -> int | None:
    """Bytes that this process has or could have; None where the system does not report it."""
    try:
        free = _kilobytes("/proc/meminfo", "MemAvailable") + _kilobytes("/proc/self/status", "VmRSS")
    except (OSError, StopIteration, ValueError):
        return None
    return 1024 * free


def _kilobytes(file: str, name: str) -> int:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def check_memory(needed: Cost, config: FinetuneConfig, free: int | None) -> None:
    """Raises RecipeError where the free memory does not suffice, naming the settings that take less."""
    if free is None or needed.memory <= free:
        return
    savings = [
        "a LoRA instead of all weights (--rank 8)" if config.rank is None else "",
        "no average (--ema 0)" if config.ema and config.rank is None else "",
        "--batch 1 with --accumulate" if config.batch > 1 else "",
        "--checkpointing" if not config.checkpointing else "",
        "--dtype bf16" if config.precision == "float32" else "",
        "smaller pictures (--size)",
    ]
    raise RecipeError(
        f"it needs about {needed.memory / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
        f"what takes less: {', '.join(filter(None, savings))}"
    )
