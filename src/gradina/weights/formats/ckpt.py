"""Old `.ckpt` files: a pickle is a program, and this one is read without running it.

torch's own restricted unpickler builds the tensors. What trainers left beside them (callbacks, numpy numbers) becomes
an inert stand-in; a pickle that asks for anything else is refused before it is opened, and the name is said.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from gradina.errors import WeightsError
from gradina.weights.safetensors import Weights, open_weights

# Modules whose classes trainers left in published checkpoints; they are never imported, and never called.
LEFT_BEHIND = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "numpy.", "omegaconf.", "ldm.", "typing.Any")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # of Lightning, of torch's guide, of DeepSpeed
PARAMETERS = "torch.nn.modules.container.ParameterDict"
NARROWEST = 16  # vectors of a word; what is narrower is something else
ZIP, PROTOCOL = b"PK\x03\x04", b"\x80"


class LeftBehind:
    """Stands for an object that no network needs; it takes whatever a pickle gives it and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> LeftBehind:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class KeptParameters(LeftBehind):
    """Stands for a ParameterDict, in which the first embedding files kept their vectors."""

    parameters: Any = None

    def __setstate__(self, state: Any) -> None:
        self.parameters = state.get("_parameters") if isinstance(state, Mapping) else None


def is_pickle(path: str | Path) -> bool:
    """Whether a file begins as torch.save writes it, now or before 2020; a safetensors header has its brace there."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head.startswith((ZIP, PROTOCOL)) and head[8:] != b"{"


def read_pickle(path: str | Path) -> Weights:
    """The tensors of a `.ckpt`, mapped; nothing in it is run.

    Raises WeightsError for a pickle that is damaged, holds no tensors, or wants more than tensors need.
    """
    path = Path(path)
    return Weights(path, tensors_of(path, content_of(path)))


def vectors_of(path: Path, content: Any) -> dict[str, Tensor] | None:
    """The word that an embedding file of diffusers or A1111's web UI holds, and its vectors; None: it is none.

    Raises WeightsError for one of several words.
    """
    if not isinstance(content, Mapping):
        return None
    kept = content.get("string_to_param")
    if isinstance(kept, KeptParameters):
        kept = kept.parameters
    if isinstance(kept, Mapping):
        if len(kept) > 1:
            raise WeightsError(f"{path}: holds {len(kept)} words ({', '.join(map(str, kept))}); expected one")
        names = (content.get("name"), *kept, path.stem)
        name = next(name for name in names if isinstance(name, str) and name not in ("", "*"))
        named = dict.fromkeys([name], *kept.values()) if kept else {}
    else:
        tensors = {name: x for name, x in content.items() if isinstance(name, str) and isinstance(x, Tensor)}
        several = len(tensors) == len(content) and are_words(tensors)
        named = dict(content) if len(content) == 1 or {"clip_l", "clip_g"} == set(content) or several else {}
    found = {n: x.detach() for n, x in named.items() if isinstance(n, str) and isinstance(x, Tensor)}
    return found if all(x.ndim in (1, 2) and x.shape[-1] >= NARROWEST for x in found.values()) and found else None


def are_words(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are several words, as one file may hold: single vectors of one width, by names without a dot."""
    widths = {x.shape[-1] if x.ndim == 1 or (x.ndim == 2 and len(x) < x.shape[-1]) else 0 for x in tensors.values()}
    return len(tensors) > 1 and len(widths) == 1 and min(widths) >= NARROWEST and not any("." in n for n in tensors)


def content_of(path: Path) -> Any:
    """What a pickle holds, with nothing in it run. Raises WeightsError."""
    wanted = _wanted(path)
    foreign = [name for name in wanted if not name.startswith(LEFT_BEHIND) and name != PARAMETERS]
    if foreign:
        raise WeightsError(_refusal(path, foreign))
    stand_ins: list[Any] = [(KeptParameters if name == PARAMETERS else LeftBehind, name) for name in wanted]
    try:
        with safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what does not work says so below
            return _loaded(path)
    except pickle.UnpicklingError as error:
        named = re.findall(r"GLOBAL ([\w.]+)", str(error))
        why = _refusal(path, named) if named else f"{path}: is no pickle of plain tensors; nothing in it was run"
        raise WeightsError(why) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path}: is truncated or damaged; fetch or copy it again") from error


def _loaded(path: Path) -> Any:
    """What torch's restricted unpickler makes of a file; one named .safetensors it would take for such, by its name."""
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _wanted(path: Path) -> list[str]:
    """The names beyond plain tensors that a pickle would call for, read off without running it."""
    if not zipfile.is_zipfile(path):
        return []  # of before 2020: torch's unpickler stops at the first such name
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # pickletools raises whatever a damaged stream leads to
        raise WeightsError(f"{path}: is truncated or damaged; fetch or copy it again") from error


def _refusal(path: Path, names: list[str]) -> str:
    shown = ", ".join(sorted(set(names))[:3])
    return (
        f"{path}: this pickle wants to use {shown}, which no weights need; it may be hostile, and nothing in it was run"
    )


def tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict, which trainers put under one of WRAPPERS.

    Raises WeightsError for what holds no tensors by name.
    """
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    found = dict(content) if isinstance(content, Mapping) else {}
    tensors = {name: x.detach() for name, x in found.items() if isinstance(name, str) and isinstance(x, Tensor)}
    if isinstance(content, list | tuple) and any(isinstance(x, Tensor) for x in content):
        raise WeightsError(
            f"{path}: holds {len(content)} tensors without names, which are for layers that it does not tell"
        )
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name; expected a checkpoint of Stable Diffusion 1.x or 2.x")
    return tensors


def open_any(path: Path) -> Weights:
    """The tensors of a safetensors file, of a pickle that is read as `read_pickle` does, or of an index of either."""
    if path.suffix == ".json" and ".bin.index." in path.name:
        shards = [read_pickle(file) for file in Weights(path, {}).files]
        return Weights(path, {name: x for shard in shards for name, x in shard.tensors.items()})
    return read_pickle(path) if path.is_file() and path.suffix != ".json" and is_pickle(path) else open_weights(path)
