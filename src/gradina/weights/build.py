"""A network built around mapped weights, strictly and without copies, and its weights by foreign names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradina.errors import WeightsError
from gradina.weights.remap import Indices, Table, read, sources, unclaimed, write
from gradina.weights.safetensors import MappedFiles, Weights, to_dtype

Network = TypeVar("Network", bound=nn.Module)


class _SkipInit(TorchFunctionMode):
    """Leaves out torch.nn.init, which on the meta device does nothing in a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(
    network: Callable[[Any], Network],
    config: object,
    weights: Weights,
    table: Table,
    dialect: str,
    indices: Indices | None = None,
    *,
    dropped: Iterable[str] = (),
    what: str,
    dtype: torch.dtype | None = None,
) -> Network:
    """The network of a config around weights with the names of a dialect. Raises WeightsError where they do not fit."""
    with torch.device("meta"), _SkipInit():
        built = network(config)
    wanted = built.state_dict()
    where = sources(wanted, table, dialect, indices)
    names = {source.name for source in where.values()}
    missing = sorted(names - set(weights.tensors))
    unexpected = unclaimed(weights.tensors, where, dropped)
    if missing or unexpected:
        counts = f"{len(names) - len(missing)} of {len(names)} parameters found"
        problems = _problem("missing", missing) + _problem("unexpected", unexpected)
        raise WeightsError(f"{weights.path}: does not fit as {what}: {counts}{problems}")
    tensors = read(weights.tensors, where)
    for name, x in tensors.items():
        _check(x, wanted[name], f"{weights.path}: {where[name].name}")
    if dtype is not None:
        mapped = MappedFiles(*weights.files)
        tensors = {name: to_dtype(x, dtype, mapped) for name, x in tensors.items()}
    built.load_state_dict(tensors, assign=True)
    return built.eval()


def export(
    network: nn.Module, table: Table, dialect: str, indices: Indices | None = None, prefix: str = ""
) -> dict[str, Tensor]:
    """The weights of a network by the names that `table` has for the dialect; a text tower's projection is left out."""
    ours = network.state_dict()
    ours.pop("projection.weight", None)
    return write(ours, sources(ours, table, dialect, indices, prefix))


def _problem(what: str, names: list[str]) -> str:
    return f"; {len(names)} {what} (first: {', '.join(names[:3])})" if names else ""


def _check(x: Tensor, wanted: Tensor, name: str) -> None:
    if x.shape != wanted.shape:
        raise WeightsError(f"{name} has shape {tuple(x.shape)}, expected {tuple(wanted.shape)}")
    if not x.is_floating_point():
        dtype = str(x.dtype).removeprefix("torch.")
        raise WeightsError(f"{name} is {dtype}, expected floating point; take a copy in fp16, bf16 or fp32")
