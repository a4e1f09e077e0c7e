"""The state of a training run in one file, replaced atomically: after a crash at any moment it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradina.errors import RecipeError
from gradina.training.loop import State
from gradina.weights.safetensors import save_weights

Network = TypeVar("Network", bound=torch.nn.Module)
MOMENTS = ("exp_avg", "exp_avg_sq", "update", "step")


def save_state(state: State, path: Path, fingerprint: str) -> None:
    """Writes weights, average, optimizer and step count, with the `fingerprint` of what decides them."""
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    if state.ema is not state.network:
        tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for name, parameter in state.network.named_parameters():
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value
    _save(path, tensors, step=state.step, fingerprint=fingerprint)


def load_state(state: State, path: Path, fingerprint: str) -> None:
    """Restores what `save_state` wrote, if anything; RecipeError if it is unreadable or written by another recipe."""
    state.step = steps_done(path, fingerprint)
    if not state.step:
        return
    tensors = _tensors(path)
    state.network.load_state_dict(_part(tensors, "network"))
    if state.ema is not state.network:
        state.ema.load_state_dict(_part(tensors, "ema"))
    for name, parameter in state.network.named_parameters():
        moments = {m: tensors[f"{m}.{name}"] for m in MOMENTS if f"{m}.{name}" in tensors}
        if moments:
            state.optimizer.state[parameter] = {m: _like(value, parameter) for m, value in moments.items()}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment in the memory format and on the device of its parameter, as the fused AdamW needs it."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.to(parameter.device)


def steps_done(path: Path, fingerprint: str) -> int:
    """The step count of the state at `path`; 0 if there is none. Raises RecipeError as `load_state`."""
    if not path.exists():
        return 0
    about = _about(path)
    if about.get("fingerprint") != fingerprint:
        raise RecipeError(
            f"{path}: is of another recipe, other pictures or settings; choose another --out, or remove it"
        )
    return int(about["step"])


def save_average(state: State, path: Path, fingerprint: str) -> None:
    """Writes the averaged weights in fp16: the result of a finished stage, as later stages and the model use it."""
    _save(path, {k: v.half() for k, v in state.ema.state_dict().items()}, step=state.step, fingerprint=fingerprint)


def load_average(network: Network, path: Path) -> Network:
    """The network with the weights of a finished stage, in fp32, for inference."""
    network.load_state_dict(_tensors(path))
    return network.eval().requires_grad_(False)


def cached_tensors(path: Path, fingerprint: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` computes; kept in a file, which is used again as long as its fingerprint is the same."""
    with suppress(RecipeError):
        if path.exists() and _about(path).get("fingerprint") == fingerprint:
            return _tensors(path)
    made = {name: x.contiguous() for name, x in make().items()}  # as it is read: else sums differ in their last bits
    _save(path, made, fingerprint=fingerprint)
    return made


def _save(path: Path, tensors: dict[str, Tensor], **about: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(tensors, path, {"about": json.dumps(about)})


def _about(path: Path) -> dict[str, Any]:
    with _readable(path) as file:
        about = json.loads((file.metadata() or {}).get("about", "{}"))
    return about if isinstance(about, dict) else {}


def _part(tensors: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    return {k.removeprefix(head + "."): v for k, v in tensors.items() if k.startswith(head + ".")}


def _tensors(path: Path) -> dict[str, Tensor]:
    with _readable(path) as file:
        return {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118 (no dict)


@contextmanager
def _readable(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not a training state ({error}); remove it to begin this stage anew") from error
