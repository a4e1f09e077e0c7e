"""Old `.ckpt` files: a pickle is a program, and this one is read without running it.

torch's restricted unpickler builds the tensors. What trainers left among them (callbacks, numpy scalars) becomes an
inert object; a pickle that asks for anything else is refused before it is opened, and the error names it.
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
from gradina.weights.safetensors import Weights, join_shards, open_weights

# Modules whose classes trainers left in published checkpoints; they are never imported or called.
INERT_MODULES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "numpy.", "omegaconf.", "ldm.", "typing.Any")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # of Lightning, of torch's guide, of DeepSpeed
PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"
ZIP, PROTOCOL = b"PK\x03\x04", b"\x80"


class InertObject:
    """In place of an object that no network needs: it accepts whatever a pickle gives it and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> InertObject:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class InertParameterDict(InertObject):
    """In place of a ParameterDict, in which the first embedding files kept their vectors."""

    parameters: Any = None

    def __setstate__(self, state: Any) -> None:
        self.parameters = state.get("_parameters") if isinstance(state, Mapping) else None


def is_pickle(path: str | Path) -> bool:
    """Whether a file begins as torch.save writes it, now or before 2020; byte 8 of a safetensors file is a brace."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head.startswith((ZIP, PROTOCOL)) and head[8:] != b"{"


def read_pickle(path: str | Path) -> Weights:
    """The tensors of a `.ckpt`, mapped; nothing in it is run. Raises WeightsError where it holds anything else."""
    path = Path(path)
    return Weights(path, state_dict_of(path, unpickle(path)))


def unpickle(path: Path) -> Any:
    """The object in a pickle, with nothing in it run. Raises WeightsError."""
    names = _globals_of(path)
    unknown = [name for name in names if not name.startswith(INERT_MODULES) and name != PARAMETER_DICT]
    if unknown:
        raise WeightsError(_refusal(path, unknown))
    inert: list[Any] = [(InertParameterDict if name == PARAMETER_DICT else InertObject, name) for name in names]
    try:
        with safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what does not work is an error below
            return _load(path)
    except pickle.UnpicklingError as error:
        named = re.findall(r"GLOBAL ([\w.]+)", str(error))
        why = _refusal(path, named) if named else f"{path}: is no pickle of plain tensors; nothing in it was run"
        raise WeightsError(why) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path}: is truncated or damaged; fetch or copy it again") from error


def _load(path: Path) -> Any:
    """torch.load by its restricted unpickler; given a path, it would take .safetensors for the format of the file."""
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _globals_of(path: Path) -> list[str]:
    """The names beyond plain tensors that a pickle would import, read without running it."""
    if not zipfile.is_zipfile(path):
        return []  # of before 2020: torch's unpickler stops at the first such name
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # pickletools raises many kinds for a damaged stream
        raise WeightsError(f"{path}: is truncated or damaged; fetch or copy it again") from error


def _refusal(path: Path, names: list[str]) -> str:
    shown = ", ".join(sorted(set(names))[:3])
    return (
        f"{path}: this pickle wants to use {shown}, which no weights need; it may be hostile, and nothing in it was run"
    )


def state_dict_of(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict, which trainers put under one of WRAPPERS. Raises WeightsError where no tensors have names."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    found = dict(content) if isinstance(content, Mapping) else {}
    tensors = {name: x.detach() for name, x in found.items() if isinstance(name, str) and isinstance(x, Tensor)}
    if isinstance(content, list | tuple) and any(isinstance(x, Tensor) for x in content):
        raise WeightsError(f"{path}: holds {len(content)} tensors without names, so that their layers are unknown")
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name; expected a checkpoint of Stable Diffusion 1.x or 2.x")
    return tensors


def open_any(path: Path) -> Weights:
    """The tensors of a safetensors file, of a pickle (see `read_pickle`), or of an index of either."""
    if path.suffix == ".json" and ".bin.index." in path.name:
        return join_shards(path, read_pickle)
    return read_pickle(path) if path.is_file() and path.suffix != ".json" and is_pickle(path) else open_weights(path)
