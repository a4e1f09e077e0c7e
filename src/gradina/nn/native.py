"""Attention in C: compiled once, where there are a C compiler and a processor with AVX-512, and kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import which

import torch
from torch import Tensor

from gradina.files import atomic_write, cache_folder

SOURCE = Path(__file__).with_name("attention.c")
COMMON = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
FLAGS = {torch.float32: COMMON, torch.bfloat16: (*COMMON, "-DBF16", "-mavx512bf16")}
WIDEST = 512  # of a head

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def own_attention(dtype: torch.dtype) -> Attend | None:
    """softmax(q kᵀ / √d) v for tensors of that type on a CPU, without gradients; None where it cannot be had.

    q is (b, heads, n, d), k and v are (b, heads, m, d) with d up to 512. GRADINA_NATIVE=0 in the environment switches
    it off.
    """
    if dtype not in FLAGS or os.environ.get("GRADINA_NATIVE") == "0":
        return None
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    try:
        library = ctypes.CDLL(str(_compiled(FLAGS[dtype])))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("attention is PyTorch's: our own cannot be compiled or loaded here (%s)", error)
        return None
    return _attend(library) if library.usable() else None


def _attend(library: ctypes.CDLL) -> Attend:
    function, long = library.attention, ctypes.c_int64
    pointer = ctypes.c_void_p

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        (b, heads, n, d), m = q.shape, k.shape[2]
        out = q.new_empty(b, n, heads, d)
        views = [x for t in (q, k, v) for x in (pointer(t.data_ptr()), (long * 3)(*t.stride()[:3]))]
        if function(*views, pointer(out.data_ptr()), *map(long, (b, heads, n, m, d))):
            raise MemoryError("attention: there is no memory left")
        return out.transpose(1, 2)

    return attend


def _compiled(flags: tuple[str, ...]) -> Path:
    """The library, compiled unless that has been done before. Threads come from the OpenMP that PyTorch has loaded."""
    source = SOURCE.read_bytes()
    name = hashlib.sha256(source + " ".join(flags).encode()).hexdigest()[:16]
    library = cache_folder() / "native" / f"attention-{name}.so"
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
