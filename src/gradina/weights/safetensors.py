"""Safetensors files, mapped and written; conversion of dtypes, and hashes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gradina.errors import WeightsError
from gradina.files import atomic_path, read_json
from gradina.nn.ops import cast_half

Value = TypeVar("Value")
WRAPPERS = ("state_dict.", "module.", "_orig_mod.")
MADV_DONTNEED = 4  # of a file's page: it is read again when it is used again

# How files of other formats begin, and what to do about them.
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a pickle of torch.save, which can run programs; {convert} reads it safely"),
    (b"\x80", "a pickle of torch.save, which can run programs; {convert} reads it safely"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull` beside it"),
    (b"GGUF", "a GGUF file, which is not read here; take the safetensors file of the same model"),
    (b"<!DOCTYPE", "a web page, probably of a failed download; fetch the file again"),
    (b"<html", "a web page, probably of a failed download; fetch the file again"),
)


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, or of the files of an index, by their names there; mapped until they are used."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them."""
        return _shards(self.path) if self.path.suffix == ".json" else (self.path,)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, which is left out."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


OpenWeights = Callable[[Path], Weights]  # opens a file, or an index of shards


def strip_wrappers(tensors: Mapping[str, Value]) -> Mapping[str, Value]:
    """The tensors without the prefix that a trainer or torch.compile put before all names."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return strip_wrappers({name.removeprefix(wrapper): x for name, x in tensors.items()})
    return tensors


def open_weights(path: str | Path) -> Weights:
    """A safetensors file, or all that a `*.safetensors.index.json` names. Raises WeightsError for any other file."""
    path = Path(path)
    if path.suffix == ".json":
        return join_shards(path, open_weights)
    try:
        with safe_open(path, framework="pt") as file:
            return Weights(path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: {_why(path, error)}") from error


def join_shards(index: Path, opened: OpenWeights) -> Weights:
    """The tensors of all files that an index names."""
    shards = [opened(file) for file in _shards(index)]
    return Weights(index, {name: x for shard in shards for name, x in shard.tensors.items()}, shards[0].metadata)


def save_weights(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a safetensors file, whole or not at all; equal tensors always give equal bytes. Raises DiskError."""
    cast = {name: x.to(dtype) if dtype and x.is_floating_point() else x for name, x in tensors.items()}
    contiguous = {name: x.detach().contiguous() for name, x in cast.items()}
    with atomic_path(path) as part:
        save_file(contiguous, part, metadata={"format": "pt", **(metadata or {})})
        _sort_metadata(part)


class MappedFiles:
    """The address ranges of mapped files, whose pages are released once copied, so that no weights lie in memory twice.

    Only Linux tells the ranges; elsewhere nothing is released, and the system evicts the pages when it must.
    """

    def __init__(self, *files: Path) -> None:
        self.ranges: list[tuple[int, int]] = []
        if sys.platform != "linux" or not Path("/proc/self/maps").is_file():
            return
        self.library = ctypes.CDLL(None)
        names = {str(file.resolve()) for file in files}
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            span, permissions, _, _, _, *name = line.split(maxsplit=5)
            if name and name[0] in names and permissions.endswith("p"):
                start, _, end = span.partition("-")
                self.ranges.append((int(start, 16), int(end, 16)))

    def release(self, x: Tensor) -> None:
        """Releases the pages that lie entirely in a tensor of one of the files."""
        start, page = x.data_ptr(), mmap.PAGESIZE
        first, last = -(-start // page) * page, (start + x.nbytes) // page * page
        if last > first and any(low <= first and last <= high for low, high in self.ranges):
            self.library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)


def to_dtype(x: Tensor, dtype: torch.dtype, mapped: MappedFiles) -> Tensor:
    """x in a dtype; where that copies it, its mapped pages are released."""
    halves = {x.dtype, dtype} == {torch.float16, torch.bfloat16} and x.device.type == "cpu"
    converted = cast_half(x, dtype) if halves else x.to(dtype)
    if converted is not x and x.is_contiguous():
        mapped.release(x)
    return converted


def model_hash(files: Iterable[Path]) -> str:
    """The first ten hex digits of the SHA-256 of files in a row, as A1111 and Civitai show; it reads all bytes."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()[:10]


def digest(network: nn.Module) -> str:
    """A hash of all that decides what a network computes: its configs and its weights."""
    found = hashlib.sha256(repr([m.config for m in network.modules() if hasattr(m, "config")]).encode())
    for name, value in network.state_dict().items():
        found.update(f"{name} {value.dtype}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
    return found.hexdigest()[:16]


def _sort_metadata(path: Path) -> None:
    """Makes the bytes reproducible: the safetensors package writes metadata in another order each time."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, which lie beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(Path(str(name)).name == name for name in names.values()):
        raise WeightsError(f"{index}: expected an index of weight files beside it; fetch it again")
    return tuple(index.parent / name for name in sorted(set(names.values())))


def _why(path: Path, error: Exception) -> str:
    """Why a file could not be opened as safetensors."""
    if path.is_dir():
        return "is a folder; expected a safetensors file"
    if not path.exists():
        return "there is no such file"
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError as refused:
        return f"cannot be read ({refused.strerror})"
    for magic, what in MAGIC:
        if head.startswith(magic):
            target = path.stem + ("-safe" if path.suffix == ".safetensors" else "") + ".safetensors"
            return f"is {what}".replace("{convert}", f"`gradina convert {quote(str(path))} {quote(target)}`")
    if _announced_size(path, head) > path.stat().st_size:
        return f"is truncated: its {path.stat().st_size} bytes are fewer than it announces; fetch or copy it again"
    return f"is no safetensors file ({error}); take one, or fetch it again"


def _announced_size(path: Path, head: bytes) -> int:
    """The bytes that a safetensors file has by its own header; 0 for a file without one."""
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
