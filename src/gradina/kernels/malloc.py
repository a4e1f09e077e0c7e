"""Freed memory goes back to the system, where GNU's C library would keep it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

MMAP_THRESHOLD = -3  # as malloc.h names it: allocations from this size on are mapped, and unmapped when freed


def trim_heap() -> None:
    """Returns memory that was freed to the system: some hundred MB for SD 1.5."""
    if sys.platform == "linux" and (trim := getattr(_library(), "malloc_trim", None)) is not None:
        trim(0)


def trim_threshold() -> None:
    """From now on this process returns each freed allocation of 1 MB or more at once: steps take a third longer."""
    if sys.platform == "linux" and (adjust := getattr(_library(), "mallopt", None)) is not None:
        adjust(MMAP_THRESHOLD, 2**20)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
