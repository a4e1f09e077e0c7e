"""What a method will need, before it starts: parameters, and memory, counted on networks without numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradina.errors import RecipeError
from gradina.training.finetune.methods import Learning
from gradina.training.finetune.trainable import Live, Owning, Recomputed

ALWAYS = 420_000_000  # bytes: Python, PyTorch and what they keep


@dataclass(frozen=True)
class Cost:
    """How many parameters learn, of how many; and bytes at most."""

    learning: int
    all: int
    memory: int

    def __str__(self) -> str:
        share = 100 * self.learning / self.all
        return f"trains {self.learning:,} parameters, {share:.2g} % of the model's; about {self.memory / 1e9:.1f} GB"


def cost(learning: Learning, how: Owning, shape: tuple[int, ...]) -> Cost:
    """What a method needs for latents of a shape (c, h, w): weights, gradients, AdamW's moments, the average, and what
    is saved for the backward."""
    model, own = learning.live.model, list(learning.learner.parameters())
    parts = [model.text, model.vae, model.unet]
    held = [*own, *(p for part in parts for p in part.parameters())]
    there = {p.untyped_storage().data_ptr(): p.nbytes for p in held}
    more = 4 if how.ema else 3  # numbers for each that learns: gradient, two moments, average
    numbers, everything = sum(p.numel() for p in own), sum(p.numel() for part in parts for p in part.parameters())
    kept = learning.passes * kept_for_the_way_back(learning.live, shape, how)
    return Cost(numbers, everything, ALWAYS + sum(there.values()) + 4 * more * numbers + kept)


def kept_for_the_way_back(live: Live, shape: tuple[int, ...], how: Owning) -> int:
    """Bytes that a forward pass for latents of a shape (c, h, w) keeps; no numbers are computed, nothing is taken.

    Of layers that are recomputed only what goes in is kept, and, at one time, what the largest of them keeps inside.
    """
    inside: list[int] = []

    def going_in(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Recomputed)
        with weighed() as kept:
            layer.layer(*inputs)
        inside.append(sum(x.numel() * x.element_size() for x in inputs[:1]))
        largest.append(sum(kept.values()))

    largest: list[int] = []
    layers = [layer for layer in live.unet.modules() if isinstance(layer, Recomputed)]
    hooks = [layer.register_forward_pre_hook(going_in) for layer in layers]
    ids = live.tokenizer([""] * how.batch * live.chunks)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), how.autocast(), weighed() as kept:
            learns = any(p.requires_grad for p in live.text.parameters())
            with torch.set_grad_enabled(learns):
                states = live.text(ids)
            cond = states.reshape(how.batch, -1, states.shape[-1])
            live.unet(torch.empty(how.batch, *shape), torch.zeros(how.batch), cond)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(kept.values()) + sum(inside) + max(largest, default=0)


@contextmanager
def weighed() -> Iterator[dict[int, int]]:
    """Bytes of all that is saved for the backward meanwhile, by where it lies; parameters are there anyway."""
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # so that nothing else comes to lie in its place

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            held.append(x)
            kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def free_memory() -> int | None:
    """Bytes that this process has or could have; None where the system does not say."""
    try:
        free = _kilobytes("/proc/meminfo", "MemAvailable") + _kilobytes("/proc/self/status", "VmRSS")
    except (OSError, StopIteration, ValueError):
        return None
    return 1024 * free


def _kilobytes(file: str, name: str) -> int:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def refuse_too_much(needed: Cost, how: Owning, there: int | None) -> None:
    """Raises RecipeError where the memory does not suffice, naming the settings that take less."""
    if there is None or needed.memory <= there:
        return
    ways = [
        "a LoRA instead of all weights (--rank 8)" if how.rank is None else "",
        "no average (--ema 0)" if how.ema and how.rank is None else "",
        "--batch 1 with --accumulate" if how.batch > 1 else "",
        "--checkpointing" if not how.checkpointing else "",
        "--dtype bf16" if how.precision == "float32" else "",
        "smaller pictures (--size)",
    ]
    raise RecipeError(
        f"it needs about {needed.memory / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are free; "
        f"what takes less: {', '.join(filter(None, ways))}"
    )
