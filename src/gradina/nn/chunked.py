"""Large feature maps and long sequences in chunks: the same values, without the memory of what lies in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, pairwise

import torch
from torch import Tensor

CHUNK = 2**23  # elements of a feature map, about, in a chunk of its rows
TOKENS = 5 * 2**18  # bytes of a chunk of tokens: what lies in between stays in the core's cache

Rows = tuple[slice, slice, slice]


def map_rows(
    fn: Callable[[Tensor, int], Tensor],
    x: Tensor,
    halo: int = 1,
    upsample: int = 1,
    residual: Callable[[Rows], Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """What fn(x[i : i + 1], i) gives for each image of x (b, c, h, w), computed some rows at a time.

    fn looks `halo` rows up and down and makes `upsample` rows of each. What `residual` gives for rows of the output is
    added to them. `out` may be x: it is used if it has the channels of the output.
    """
    chunks = chain(_chunks(fn, x, halo, upsample), [None])
    for chunk, _ in pairwise(chunks):  # a chunk is written once the next, which still reads its last rows, is computed
        assert chunk is not None
        rows, y = chunk
        if out is None or out.shape[1] != y.shape[1]:
            out = _empty(y, len(x), upsample * x.shape[2])
        if residual is None:
            out[rows].copy_(y)
        else:
            torch.add(y, residual(rows), out=out[rows])
        del chunk, y
    assert out is not None
    return out


def _chunks(fn: Callable[[Tensor, int], Tensor], x: Tensor, halo: int, upsample: int) -> Iterator[tuple[Rows, Tensor]]:
    """Rows of the output, and what they are."""
    height, rows = x.shape[2], _rows(x, upsample)
    for i in range(len(x)):
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            first, last = max(0, top - halo), min(height, bottom + halo)
            y = fn(x[i : i + 1, :, first:last], i)
            inner = slice(upsample * (top - first), upsample * (bottom - first))
            yield (slice(i, i + 1), slice(None), slice(upsample * top, upsample * bottom)), y[:, :, inner]


def _rows(x: Tensor, upsample: int) -> int:
    return max(16, CHUNK // (x.shape[1] * x.shape[3] * upsample**2))


def _empty(like: Tensor, count: int, height: int) -> Tensor:
    last = like.is_contiguous(memory_format=torch.channels_last)
    memory = torch.channels_last if last else torch.contiguous_format
    shape = (count, like.shape[1], height, like.shape[3])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory)


def map_tokens(fn: Callable[[Tensor, Tensor], Tensor], h: Tensor, x: Tensor) -> Tensor:
    """fn(h, x) of a function that treats each token of h and x (b, n, width) alone, computed some tokens at a time."""
    tokens = max(1, TOKENS // (x.shape[-1] * x.element_size()))
    if x.shape[0] * x.shape[1] <= tokens:
        return fn(h, x)
    out = x.new_empty(x.shape)
    for to, *some in zip(*(torch.split(each.flatten(0, 1), tokens) for each in (out, h, x)), strict=True):
        to.copy_(fn(*some))
    return out
