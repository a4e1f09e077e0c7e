"""Our kernels in C: compiled once, where a C compiler and AVX-512 are there, and kept in the cache.

How they are compiled, and for what they are used, depends on the processor: see KERNELS, and benchmarks/attention.py
and layers.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which

import torch
from torch import Tensor

from gradina.files import atomic_write, cache_folder

SOURCES = Path(__file__).with_name("csrc")
COMMON = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
BF16 = (*COMMON, "-DBF16", "-mavx512bf16")
AMX = (*BF16, "-DAMX", "-mamx-tile", "-mamx-bf16")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """One way to compile it, and where that is quicker than PyTorch's."""

    dtype: torch.dtype
    needs: str  # of the processor, as /proc/cpuinfo has it
    flags: tuple[str, ...]
    work: int  # multiplications of a head of attention: as many at least
    queries: int  # as many at least
    width: int  # of a head, at most
    tiles: bool = False  # whether numbers are multiplied by whole tiles

    def suits(self, q: Tensor, k: Tensor) -> bool:
        """Whether it is the quickest for q (b, heads, n, d) and k (b, heads, m, d)."""
        n, d = q.shape[-2:]
        return n >= self.queries and d <= self.width and n * k.shape[-2] * d >= self.work


KERNELS = (  # for each type the first that the processor has; those of a processor with tiles are Intel's
    Kernel(torch.bfloat16, "amx_bf16",    AMX,    work=2**22, queries=1,    width=256, tiles=True),
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
def library(flags: tuple[str, ...]) -> ctypes.CDLL | None:
    """What they are compiled into, ready to be called; None where that cannot be done."""
    try:
        found = ctypes.CDLL(str(_compiled(flags)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("kernels are PyTorch's: our own cannot be compiled or loaded here (%s)", error)
        return None
    return found if found.usable() else None


def _compiled(flags: tuple[str, ...]) -> Path:
    """The library, compiled unless that has been done before. Threads come from the OpenMP that PyTorch has loaded."""
    sources = sorted(SOURCES.iterdir())
    texts = b"".join(source.read_bytes() for source in sources)
    name = hashlib.sha256(texts + " ".join(flags).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"{name}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CC") or which("cc") or which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    with tempfile.TemporaryDirectory() as room:
        made, parts = Path(room) / "kernels", []
        for source in sources:
            if source.suffix == ".c":
                parts.append(f"{made}-{source.stem}.o")
                _run(compiler, *flags, "-c", str(source), "-o", parts[-1])
        _run(compiler, "-shared", *parts, "-o", f"{made}.so", "-lm")  # not with libgomp: there would be a second one
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(Path(f"{made}.so").read_bytes())
    return path


def _run(compiler: str, *flags: str) -> None:
    subprocess.run([*compiler.split(), *flags], check=True, capture_output=True)
