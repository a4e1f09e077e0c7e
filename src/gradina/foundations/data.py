"""Data: files in LeCun's IDX format, and shuffled batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from gradina.foundations.random import Random

T = TypeVar("T")


def read_idx(path: str | Path, limit: int | None = None) -> tuple[tuple[int, ...], bytes]:
    """The shape and bytes of an IDX file of unsigned bytes, or its first `limit` entries. Raises ValueError."""
    data = Path(path).read_bytes()
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes (starts with {data[:4].hex() or 'nothing'})")
    begin = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, begin, 4))
    if len(data) - begin != math.prod(shape):
        raise ValueError(f"{path}: {len(data) - begin} bytes of data where the header says {'x'.join(map(str, shape))}")
    if limit is not None:
        shape = (min(limit, shape[0]), *shape[1:])
    return shape, data[begin : begin + math.prod(shape)]


def batches(items: Sequence[T], size: int, random: Random) -> Iterator[list[T]]:
    """All items once in random order, `size` at a time; the last batch may be smaller."""
    if size < 1:
        raise ValueError(f"size: got {size}, expected 1 or more")
    shuffled = random.shuffled(items)
    for i in range(0, len(shuffled), size):
        yield shuffled[i : i + size]
