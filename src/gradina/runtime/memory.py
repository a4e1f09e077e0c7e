"""Memory and arithmetic of the whole process: freed memory, and denormals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gradina.kernels.bindings import DenormalsKernel, native
from gradina.kernels.malloc import trim_heap, trim_threshold

__all__ = ["flush_denormals", "trim_heap", "trim_threshold"]


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Meanwhile denormals are flushed to zero, in all threads, where the kernels are available.

    Softmax and its backward produce many of them, and each takes a core 50 times as long.
    """
    set_mode = native(DenormalsKernel, torch.float32)
    before = set_mode(1) if set_mode else 0
    try:
        yield
    finally:
        if set_mode:
            set_mode(before)
