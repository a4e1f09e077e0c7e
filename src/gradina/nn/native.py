"""Kernels in C: compiled once, where a C compiler and AVX-512 are there, and kept in the cache.

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from shutil import which

import torch
from torch import Tensor, nn

from gradina.files import atomic_write, cache_folder

SOURCES = Path(__file__).with_name("kernels")
LANES = 16  # numbers of single precision that are multiplied at once
COMMON = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
BF16 = (*COMMON, "-DBF16", "-mavx512bf16")
AMX = (*BF16, "-DAMX", "-mamx-tile", "-mamx-bf16")

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Gate = Callable[[Tensor], Tensor]
Halves = Callable[[Tensor], Tensor]


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
        log.info("kernels are PyTorch's: our own cannot be compiled or loaded here (%s)", error)
        return None
    return library if library.usable() else None


def own_gate(dtype: torch.dtype) -> Gate | None:
    """gelu(gate) · h for the halves of (..., h gate) on a CPU, without gradients; None where it cannot be had."""
    own = kernel(dtype)
    library = _library(own.flags) if own else None
    return partial(_gate, library) if library else None


def _gate(library: ctypes.CDLL, both: Tensor) -> Tensor:
    both, width = both.contiguous(), both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    library.gated(_at(both), _at(out), ctypes.c_int64(out.numel() // max(1, width)), ctypes.c_int64(width))
    return out


def own_halves() -> Halves | None:
    """float16 (contiguous, on a CPU) -> the nearest bfloat16, as PyTorch rounds; None where it cannot be had."""
    own = kernel(torch.bfloat16)
    library = _library(own.flags) if own else None
    return partial(_nearest, library) if library else None


def _nearest(library: ctypes.CDLL, x: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=torch.bfloat16)
    library.nearest(_at(x), _at(out), ctypes.c_int64(x.numel()))
    return out


class Norm:
    """GroupNorm of maps (b, c, h, w) whose channels lie last in memory, and LayerNorm; on a CPU, without gradients."""

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

    def rows(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """norm(x) for x (..., width) of the type of the norm's weights, which it has to have."""
        x = x.contiguous()
        out, width = torch.empty_like(x), x.shape[-1]
        sizes = map(ctypes.c_int64, (x.numel() // width, width))
        self.library.rows_scaled(_at(x), _at(out), *sizes, _at(norm.weight), _at(norm.bias), ctypes.c_double(norm.eps))
        return out


def own_norm(dtype: torch.dtype) -> Norm | None:
    """Our own norms; None where they cannot be had."""
    own = kernel(dtype)
    library = _library(own.flags) if own else None
    return Norm(library) if library else None


class Convolution:
    """3x3 convolutions, padded by one, of maps on a CPU, without gradients.

    By tiles where the processor has them, and elsewhere by a quarter of the multiplications.
    """

    def __init__(self, library: ctypes.CDLL, tiles: bool) -> None:
        self.library, self.tiles = library, tiles

    def order(self, weight: Tensor) -> Tensor:
        """Weights (out, in, 3, 3) as they are asked for; numbers of no use are zero.

        Sixteen that come out at a time: (out/16, in, 9, 16). Or in tiles, 32 by 32: (out/32, in/32, 9, 2, 16, 16, 2).
        """
        weight, (out, channels) = weight.contiguous(), weight.shape[:2]
        by_tiles = (-(-out // (2 * LANES)), -(-channels // (2 * LANES)), 9, 2, LANES, LANES, 2)
        made = weight.new_empty(by_tiles if self.tiles else (-(-out // LANES), channels, 9, LANES))
        self.library.order(_at(weight), _at(made), ctypes.c_int64(channels), ctypes.c_int64(out))
        return made

    def __call__(
        self, x: Tensor, ordered: Tensor, out: int, bias: Tensor | None, beside: Tensor | None = None, grows: int = 1
    ) -> Tensor:
        """The convolution of x (b, in, h, w), doubled in height and width if it grows by 2, plus what is beside it."""
        b, channels, height, width = x.shape
        size = (grows * height, grows * width)
        last = torch.channels_last
        x, beside = x.contiguous(memory_format=last), None if beside is None else beside.contiguous(memory_format=last)
        made = torch.empty(b, out, *size, dtype=x.dtype, memory_format=last)
        sizes = map(ctypes.c_int64, (b, *size, channels, out, grows))
        if self.library.convolved(*map(_at, (x, ordered, bias, beside, made)), *sizes):
            raise MemoryError("convolution: there is no memory left")
        return made


def ordinary(ordered: Tensor, out: int, channels: int) -> Tensor:
    """The weights (out, channels, 3, 3) that `Convolution.order` was given."""
    if ordered.dim() == 7:
        outs, ins = (2 * LANES * count for count in ordered.shape[:2])
        weight = ordered.permute(0, 3, 5, 1, 4, 6, 2).reshape(outs, ins, 3, 3)
    else:
        weight = ordered.permute(0, 3, 1, 2).reshape(-1, channels, 3, 3)
    return weight[:out, :channels]


def own_convolution(dtype: torch.dtype) -> Convolution | None:
    """Our own convolution; None where it cannot be had."""
    own = kernel(dtype)
    library = _library(own.flags) if own else None
    return Convolution(library, own.tiles) if own and library else None


class Product:
    """Linear layers on a CPU, without gradients. The halves of what comes out may be a gate's: gelu(second) · first."""

    def __init__(self, library: ctypes.CDLL, tiles: bool) -> None:
        self.library, self.tiles = library, tiles

    def order(self, weight: Tensor, halves: bool = False) -> Tensor:
        """Weights (out, in) as they are asked for; numbers of no use are zero.

        Sixty-four that come out at a time: (out/64, in, 64), with `halves` (out/64, in, 2, 32). Or in tiles, 32 by 32:
        (out/32, in/32, 2, 16, 16, 2), where the first 2 may be the halves.
        """
        weight, (out, width) = weight.contiguous(), weight.shape
        wide, deep = (2 * LANES, -(-width // (2 * LANES))) if self.tiles else (4 * LANES, width)
        panels = -(-(out // 2) // (wide // 2)) if halves else -(-out // wide)
        each = (2, LANES, LANES, 2) if self.tiles else (2, wide // 2) if halves else (wide,)
        made = weight.new_empty(panels, deep, *each)
        self.library.order_rows(_at(weight), _at(made), *map(ctypes.c_int64, (width, out, halves)))
        return made

    def __call__(
        self,
        x: Tensor,
        ordered: Tensor,
        out: int,
        bias: Tensor | None,
        beside: Tensor | None = None,
        halves: bool = False,
        gates: bool = False,
    ) -> Tensor:
        """x (..., in) -> (..., out), plus what is beside it; where its halves are to gate, (..., out / 2)."""
        x, beside = x.contiguous(), None if beside is None else beside.contiguous()
        width = x.shape[-1]
        made = x.new_empty(*x.shape[:-1], out // 2 if gates else out)
        sizes = map(ctypes.c_int64, (x.numel() // width, width, out, halves, gates))
        if self.library.multiplied(*map(_at, (x, ordered, bias, beside, made)), *sizes):
            raise MemoryError("linear layer: there is no memory left")
        return made


def ordinary_rows(ordered: Tensor, out: int, width: int, halves: bool = False) -> Tensor:
    """The weights (out, width) that `Product.order` was given."""
    if ordered.dim() < 6:
        rows = ordered.permute(2, 0, 3, 1) if halves else ordered.permute(0, 2, 1)
    else:
        rows = ordered.permute((2, 0, 4, 1, 3, 5) if halves else (0, 2, 4, 1, 3, 5)).flatten(3)
    if halves:
        return rows.reshape(2, -1, rows.shape[-1])[:, : out // 2, :width].flatten(0, 1)
    return rows.reshape(-1, rows.shape[-1])[:out, :width]


def own_product(dtype: torch.dtype, gates: bool = False) -> Product | None:
    """Our own product of linear layers, or of those that gate; None where it cannot be had, or is not the quickest."""
    own = kernel(dtype)
    quick = own is not None and (own.tiles or (gates and own.dtype == torch.float32))
    library = _library(own.flags) if own and quick else None
    return Product(library, own.tiles) if own and library else None


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
    sources = sorted(SOURCES.iterdir())
    texts = b"".join(source.read_bytes() for source in sources)
    name = hashlib.sha256(texts + " ".join(flags).encode()).hexdigest()[:16]
    library = cache_folder() / "native" / f"{name}.so"
    if library.exists():
        return library
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
        library.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(library) as file:
            file.write(Path(f"{made}.so").read_bytes())
    return library


def _run(compiler: str, *flags: str) -> None:
    subprocess.run([*compiler.split(), *flags], check=True, capture_output=True)
