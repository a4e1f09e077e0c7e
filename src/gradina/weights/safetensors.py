"""Safetensors in and out: files are mapped, not read, and a network is built around what they hold.

Loading is strict: every parameter is found, and everything in a file is known, or the error says what is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradina.errors import WeightsError
from gradina.files import atomic_path
from gradina.nn.ops import cast_half
from gradina.weights.mmap import Mapped
from gradina.weights.remap import Source, read, unclaimed

Value = TypeVar("Value")
Network = TypeVar("Network", bound=nn.Module)
INDEX = ".safetensors.index.json"
WRAPPERS = ("state_dict.", "module.", "_orig_mod.")

# How files begin that are taken for safetensors, and what to do about it.
OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a pickle of torch.save, which can run programs; {convert} reads it safely"),
    (b"\x80", "a pickle of torch.save, which can run programs; {convert} reads it safely"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull` beside it"),
    (b"GGUF", "a GGUF file, which is not read here; take the safetensors file of the same model"),
    (b"<!DOCTYPE", "a web page, probably of a failed download; fetch the file again"),
    (b"<html", "a web page, probably of a failed download; fetch the file again"),
)


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, or of the files of an index, by their foreign names; mapped until they are used."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them."""
        if self.path.suffix == ".json":
            return tuple(sorted({self.path.parent / name for name in _index(self.path).values()}))
        return (self.path,)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


class _Unfilled(TorchFunctionMode):
    """Networks are built without their first random values: on the meta device those are nothing, and cost a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def unwrapped(tensors: Mapping[str, Value]) -> Mapping[str, Value]:
    """Names without what a trainer or a compiler put before all of them."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return unwrapped({name.removeprefix(wrapper): x for name, x in tensors.items()})
    return tensors


def open_weights(path: str | Path) -> Weights:
    """A safetensors file, or all files that a `*.safetensors.index.json` names.

    Raises WeightsError for a file that is missing, truncated, or of another format.
    """
    path = Path(path)
    if path.suffix == ".json":
        files = sorted(set(_index(path).values()))
        parts = [open_weights(path.parent / name) for name in files]
        return Weights(path, {name: x for part in parts for name, x in part.tensors.items()}, parts[0].metadata)
    try:
        with safe_open(path, framework="pt") as file:
            return Weights(path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: {_why(path, error)}") from error


def save_weights(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all; the same tensors always give the same bytes. Raises DiskError."""
    whole = {name: x.detach().contiguous() for name, x in tensors.items()}
    with atomic_path(path) as part:
        save_file(whole, part, metadata={"format": "pt", **(metadata or {})})
        _sort_metadata(part)


def find_weights(folder: Path, stem: str, variant: str | None = None) -> Path:
    """The file or index in a folder of the diffusers layout that holds a network's weights.

    Raises WeightsError, listing what is there, if that variant is not.
    """
    dotted = f"{stem}.{variant}" if variant else stem
    for name in (f"{dotted}.safetensors", f"{dotted}{INDEX}", f"{stem}{INDEX.removesuffix('.json')}.{variant}.json"):
        if (folder / name).is_file():
            return folder / name
    there = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".ckpt"))
    other = "another variant" if any(name.endswith(".safetensors") for name in there) else "a folder with safetensors"
    raise WeightsError(
        f"{folder}: has no {dotted}.safetensors; take {other} (there is: {', '.join(there) or 'nothing'})"
    )


def build(
    network: Callable[[Any], Network],
    config: object,
    weights: Weights,
    where: Callable[[Iterable[str]], Mapping[str, Source]],
    dropped: Iterable[str] = (),
    dialect: str = "",
    dtype: torch.dtype | None = None,
) -> Network:
    """The network of that config around the weights that `where` finds for its parameters; nothing is copied.

    Raises WeightsError with the file, its dialect, the counts and the first names, where they do not fit.
    """
    with torch.device("meta"), _Unfilled():
        built = network(config)
    wanted = built.state_dict()
    sources = where(wanted)
    missing = sorted({s.name for s in sources.values()} - set(weights.tensors))
    unexpected = unclaimed(weights.tensors, sources, dropped)
    found = len({s.name for s in sources.values()}) - len(missing)
    if missing or unexpected:
        raise WeightsError(f"{weights.path}: {_misfit(dialect or network.__name__, found, missing, unexpected)}")
    tensors = read(weights.tensors, sources)
    for name, x in tensors.items():
        if x.shape != wanted[name].shape:
            got, expected = tuple(x.shape), tuple(wanted[name].shape)
            raise WeightsError(f"{weights.path}: {sources[name].name} has shape {got}, expected {expected}")
        if not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise WeightsError(
                f"{weights.path}: {sources[name].name} holds {kind} numbers, expected floating point; take a copy in "
                "fp16, bf16 or fp32"
            )
    if dtype is not None:
        mapped = Mapped(*weights.files)
        tensors = {name: in_type(x, dtype, mapped) for name, x in tensors.items()}
    built.load_state_dict(tensors, assign=True)
    return built.eval()


def in_type(x: Tensor, dtype: torch.dtype, mapped: Mapped) -> Tensor:
    """The same numbers in a type; where that makes a copy, what was mapped is given back."""
    halves = {x.dtype, dtype} == {torch.float16, torch.bfloat16} and x.device.type == "cpu"
    converted = cast_half(x, dtype) if halves else x.to(dtype)
    if converted is not x and x.is_contiguous():
        mapped.release(x)
    return converted


def model_hash(files: Iterable[Path]) -> str:
    """The first ten hex digits of the SHA-256 of these files, one after the other.

    For a single file this is the hash that A1111 and Civitai show. It reads the files whole, some seconds for
    gigabytes, so ask for it when a picture is saved and not before.
    """
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:10]


def digest(network: nn.Module) -> str:
    """A name for what a network computes: its configurations, which say what shapes do not, and its weights."""
    found = hashlib.sha256(repr([m.config for m in network.modules() if hasattr(m, "config")]).encode())
    for name, value in network.state_dict().items():
        found.update(f"{name} {value.dtype}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _sort_metadata(path: Path) -> None:
    """The safetensors package writes metadata in a new order each time; sorted, a model has one hash."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _index(path: Path) -> dict[str, str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        inside = all(Path(name).name == name for name in names.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: is no index of weight files ({error!r}); fetch it again") from error
    if not names or not inside:
        raise WeightsError(f"{path}: expected an index of weight files beside it; fetch it again")
    return dict(names)


def _misfit(dialect: str, found: int, missing: list[str], unexpected: list[str]) -> str:
    parts = [f"does not fit as {dialect}: {found} of {found + len(missing)} parameters found"]
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            parts.append(f"{len(names)} {what} (first: {', '.join(names[:3])})")
    return "; ".join(parts)


def _why(path: Path, error: Exception) -> str:
    """What is wrong with a file that is not the safetensors file it was taken for."""
    if path.is_dir():
        return "is a folder; expected a safetensors file"
    if not path.exists():
        return "there is no such file"
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError as refused:
        return f"cannot be read ({refused.strerror})"
    for beginning, what in OTHERS:
        if head.startswith(beginning):
            target = path.stem + ("-safe" if path.suffix == ".safetensors" else "") + ".safetensors"
            return f"is {what}".replace("{convert}", f"`gradina convert {quote(str(path))} {quote(target)}`")
    if _announced(path, head) > path.stat().st_size:
        return f"is truncated: its {path.stat().st_size} bytes are fewer than it announces; fetch or copy it again"
    return f"is no safetensors file ({error}); take one, or fetch it again"


def _announced(path: Path, head: bytes) -> int:
    """How many bytes a safetensors file must have by its own header; 0 for a file that has none."""
    if len(head) < 9:
        return 9
    if head[8:9] != b"{":
        return 0
    length = 8 + int.from_bytes(head[:8], "little")
    if length > path.stat().st_size:
        return length
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(length)[8:])
        return length + max((x["data_offsets"][1] for name, x in header.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return 0
