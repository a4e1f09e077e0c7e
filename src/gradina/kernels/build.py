"""The kernels in C: compiled once, where a C compiler and AVX-512 are there, and kept in the cache.

What they are used for on which CPU is written in dispatch.py.
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

from gradina.files import atomic_write, cache_folder

SOURCES = Path(__file__).with_name("csrc")
COMMON = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
BF16 = (*COMMON, "-DBF16", "-mavx512bf16")
AMX = (*BF16, "-DAMX", "-mamx-tile", "-mamx-bf16")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Build:
    """One way to compile the kernels."""

    dtype: torch.dtype
    feature: str  # of the CPU, as /proc/cpuinfo names it
    flags: tuple[str, ...]
    tiles: bool = False  # whether matrices are multiplied by AMX tiles


BUILDS = (  # for each dtype the first whose feature the CPU has; CPUs with AMX are Intel's
    Build(torch.bfloat16, "amx_bf16",    AMX, tiles=True),
    Build(torch.bfloat16, "avx512_bf16", BF16),
    Build(torch.float32,  "amx_bf16",    COMMON),
    Build(torch.float32,  "avx512f",     COMMON),
)  # fmt: skip


def build_for(dtype: torch.dtype) -> Build | None:
    """The build for a dtype on this CPU. GRADINA_NATIVE=0 in the environment switches the kernels off."""
    if os.environ.get("GRADINA_NATIVE") == "0":
        return None
    return _build_for(dtype, cpu_features())


@cache
def _build_for(dtype: torch.dtype, features: frozenset[str]) -> Build | None:
    return next((build for build in BUILDS if build.dtype == dtype and build.feature in features), None)


@cache
def cpu_features() -> frozenset[str]:
    """The features of this CPU, by Linux's names; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def library(flags: tuple[str, ...]) -> ctypes.CDLL | None:
    """The kernels compiled with these flags; None where that cannot be done."""
    try:
        found = ctypes.CDLL(str(_compiled(flags)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("native kernels cannot be compiled or loaded here, PyTorch's are used (%s)", error)
        return None
    return found if found.supported() else None


def _compiled(flags: tuple[str, ...]) -> Path:
    """The library's file, compiled unless it is cached. Threads come from the OpenMP that PyTorch has loaded."""
    sources = sorted(SOURCES.iterdir())
    texts = b"".join(source.read_bytes() for source in sources)
    name = hashlib.sha256(texts + " ".join(flags).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"{name}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CC") or which("cc") or which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    with tempfile.TemporaryDirectory() as folder:
        stem, objects = Path(folder) / "kernels", []
        for source in sources:
            if source.suffix == ".c":
                objects.append(f"{stem}-{source.stem}.o")
                _run(compiler, *flags, "-c", str(source), "-o", objects[-1])
        _run(compiler, "-shared", *objects, "-o", f"{stem}.so", "-lm")  # not with libgomp: there would be a second one
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(Path(f"{stem}.so").read_bytes())
    return path


def _run(compiler: str, *flags: str) -> None:
    subprocess.run([*compiler.split(), *flags], check=True, capture_output=True)
