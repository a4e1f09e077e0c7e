"""Attention, GroupNorm and gates in C: compiled once, where a C compiler and AVX-512 are there, and kept in the cache.

How it is compiled, and for which shapes it is used, depends on the processor: see KERNELS, and benchmarks/attention.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from shutil import which

import torch
from torch import Tensor, nn

from gradina.files import atomic_write, cache_folder

SOURCE = Path(__file__).with_name("native.c")
COMMON = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
BF16 = (*COMMON, "-DBF16", "-mavx512bf16")
AMX = (*BF16, "-DAMX", "-mamx-tile", "-mamx-bf16")

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Gate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kernel:
    """One way to compile it, and where that is quicker than PyTorch's."""

    dtype: torch.dtype
    needs: str  # of the processor, as /proc/cpuinfo has it
    flags: tuple[str, ...]
    work: int  # multiplications of a head: as many at least
    queries: int  # as many at least
    width: int  # of a head, at most

    def suits(self, q: Tensor, k: Tensor) -> bool:
        """Whether it is the quickest for q (b, heads, n, d) and k (b, heads, m, d)."""
        n, d = q.shape[-2:]
        return n >= self.queries and d <= self.width and n * k.shape[-2] * d >= self.work


KERNELS = (  # for each type the first that the processor has; those of a processor with tiles are Intel's
    Kernel(torch.bfloat16, "amx_bf16",    AMX,    work=2**22, queries=1,    width=256),
    Kernel(torch.bfloat16, "avx512_bf16", BF16,   work=2**22, queries=1,    width=512),
    Kernel(torch.float32,  "amx_bf16",    COMMON, work=2**22, queries=1024, width=256),
    Kernel(torch.float32,  "avx512f",     COMMON, work=2**22, queries=1,    width=512),
)  # fmt: skip


def kernel(dtype: torch.dtype) -> Kernel | None:
    """The one for numbers of that type on this processor. GRADINA_NATIVE=0 in the environment switches it off."""
    if os.environ.get("GRADINA_NATIVE") == "0":
        return None
    return next((row for row in KERNELS if row.dtype == dtype and row.needs in _processor()), None)


@cache
def _processor() -> frozenset[str]:
    """What this processor can do, in Linux's words; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def compiled(kernel: Kernel) -> Attend | None:
    """softmax(q kᵀ / √d) v for tensors on a CPU, without gradients; None where it cannot be had.

    q is (b, heads, n, d), k and v are (b, heads, m, d), with d up to 512.
    """
    library = _library(kernel.flags)
    return _attend(library) if library else None


@cache
def _library(flags: tuple[str, ...]) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_compiled(flags)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("attention is PyTorch's: our own cannot be compiled or loaded here (%s)", error)
        return None
    return library if library.usable() else None


def own_gate(dtype: torch.dtype) -> Gate | None:
    """gelu(gate) · h for the halves of (..., h gate) on a CPU, without gradients; None where it cannot be had."""
    own = kernel(dtype)
    library = _library(own.flags) if own and dtype == torch.bfloat16 else None
    return partial(_gate, library) if library else None


def _gate(library: ctypes.CDLL, both: Tensor) -> Tensor:
    both, width = both.contiguous(), both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    library.gated(_at(both), _at(out), ctypes.c_int64(out.numel() // max(1, width)), ctypes.c_int64(width))
    return out


class Norm:
    """GroupNorm of maps (b, c, h, w) whose channels lie last in memory, on a CPU and without gradients."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def moments(self, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and offset (b, c) with which scale · x + offset is norm(x + shift), for a shift (b, c)."""
        b, channels, height, width = x.shape
        made = torch.empty(2, b, channels)
        given = [None if t is None else t.float().contiguous() for t in (shift, norm.weight, norm.bias)]
        sizes = map(ctypes.c_int64, (b, height * width, channels, norm.num_groups))
        if self.library.moments(_at(x), *sizes, *map(_at, given), ctypes.c_double(norm.eps), *map(_at, made)):
            raise MemoryError("GroupNorm: there is no memory left")
        return made[0], made[1]

    def scaled(self, x: Tensor, scale: Tensor, offset: Tensor, active: bool) -> Tensor:
        """scale · x + offset, and its SiLU if that is wanted."""
        b, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        sizes = map(ctypes.c_int64, (b, height * width, channels))
        self.library.scaled(_at(x), _at(out), *sizes, _at(scale), _at(offset), ctypes.c_int64(active))
        return out


def own_norm(dtype: torch.dtype) -> Norm | None:
    """Our own GroupNorm; None where it cannot be had."""
    own = kernel(dtype)
    library = _library(own.flags) if own else None
    return Norm(library) if library else None


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def own_attention(dtype: torch.dtype) -> Attend | None:
    """The quickest on this processor, for what it `suits`; None where there is none."""
    own = kernel(dtype)
    return compiled(own) if own else None


def _attend(library: ctypes.CDLL) -> Attend:
    function, long = library.attention, ctypes.c_int64

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        (b, heads, n, d), m = q.shape, k.shape[2]
        out = q.new_empty(b, n, heads, d)
        views = [x for t in (q, k, v) for x in (_at(t), (long * 3)(*t.stride()[:3]))]
        if function(*views, _at(out), *map(long, (b, heads, n, m, d))):
            raise MemoryError("attention: there is no memory left")
        return out.transpose(1, 2)

    return attend


def _compiled(flags: tuple[str, ...]) -> Path:
    """The library, compiled unless that has been done before. Threads come from the OpenMP that PyTorch has loaded."""
    source = SOURCE.read_bytes()
    name = hashlib.sha256(source + " ".join(flags).encode()).hexdigest()[:16]
    library = cache_folder() / "native" / f"{SOURCE.stem}-{name}.so"
    if library.exists():
        return library
    compiler = os.environ.get("CC") or which("cc") or which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    with tempfile.TemporaryDirectory() as room:
        made = Path(room) / "attention"
        for command in (
            (*flags, "-c", str(SOURCE), "-o", f"{made}.o"),
            ("-shared", f"{made}.o", "-o", f"{made}.so", "-lm"),  # not with libgomp: there would be a second one
        ):
            subprocess.run([*compiler.split(), *command], check=True, capture_output=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(library) as file:
            file.write(Path(f"{made}.so").read_bytes())
    return library
