"""Convolutions over large maps, strip after strip: the same numbers, without the memory that whole maps take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gradina.kernels.prepacked import grown, plus
from gradina.nn.norm import Layer, is_fast, normalised, normaliser

LARGE = 2**26  # numbers of a map: beyond it (a 512x512 picture's widest have as many), it is gone over in strips
LARGE_IN_C = 2**24  # the same where strips cost no time: what is smaller is kept for the next map, and so at hand
STRIP = 2**23  # numbers of a strip, about; it looks at one more row on either side


def is_large(x: Tensor, grows: int = 1) -> bool:
    """Whether a map is gone over in strips: there is much of it, or of what it grows to, and nothing learns."""
    return x.numel() * grows**2 > (LARGE_IN_C if is_fast(x) else LARGE) and not torch.is_grad_enabled()


def norm_silu_conv(
    norm: nn.GroupNorm,
    conv: nn.Module,
    x: Tensor,
    beside: Tensor | None = None,
    skip: Layer | None = None,
    shift: Tensor | None = None,
    spare: bool = False,
) -> Tensor:
    """conv(silu(norm(x + shift))), plus what is beside it, for a 3x3 padded by one: (b, c, h, w) -> (b, out, h, w).

    What is beside it goes through `skip`, which looks at each place alone. With a shift (b, c), or if it is `spare`, x
    is of no further use: then what comes out may lie in its memory.
    """
    if not is_large(x):
        h = normalised(norm, x, shift, active=True)
        return conv(h) if beside is None else plus(conv, h, beside if skip is None else skip(beside))
    layers = []
    for i in range(len(x)):
        layer = normaliser(norm, x[i : i + 1], None if shift is None else shift[i : i + 1])
        layers.append(lambda part, layer=layer: conv(layer(part)))
    return in_strips(layers, x, beside, skip, spare)


def upsample_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) for x doubled in height and width, of the nearest: (b, c, h, w) -> (b, out, 2h, 2w)."""
    return in_strips([partial(grown, conv)] * len(x), x, grows=2) if is_large(x, grows=2) else grown(conv, x)


def in_strips(
    layers: Sequence[Layer],
    x: Tensor,
    beside: Tensor | None = None,
    skip: Layer | None = None,
    spare: bool = False,
    grows: int = 1,
) -> Tensor:
    """layer(one) + skip(beside) for each one of x and its layer, which looks one row up and down and grows each row."""
    out: Tensor | None = x if spare else None
    for i, layer in enumerate(layers):
        waiting = None
        for top, bottom in _strips(x, grows):
            above, below = max(0, top - 1), min(x.shape[2], bottom + 1)
            made = layer(x[i : i + 1, :, above:below])
            if waiting is not None:
                _put(*waiting)  # no sooner: the strip below it had to be looked at
            if out is None or out.shape[1] != made.shape[1]:
                out = _empty(len(x), made, grows * x.shape[2])
            at = (slice(i, i + 1), slice(None), slice(grows * top, grows * bottom))
            kept = made[:, :, grows * (top - above) : grows * (bottom - above)]
            waiting = out[at], kept, None if beside is None else beside[at], skip
        if waiting is not None:
            _put(*waiting)
    assert out is not None
    return out


def _empty(count: int, made: Tensor, height: int) -> Tensor:
    last = made.is_contiguous(memory_format=torch.channels_last)
    shape = (count, made.shape[1], height, made.shape[3])
    how = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=how)


def _put(to: Tensor, made: Tensor, beside: Tensor | None, skip: Layer | None) -> None:
    if beside is None:
        to.copy_(made)
    else:
        torch.add(made, beside if skip is None else skip(beside), out=to)


def _strips(x: Tensor, grows: int) -> Iterator[tuple[int, int]]:
    rows = _rows(x, grows)
    for top in range(0, x.shape[2], rows):
        yield top, min(x.shape[2], top + rows)


def _rows(x: Tensor, grows: int) -> int:
    return max(16, STRIP // (x.shape[1] * x.shape[3] * grows**2))
