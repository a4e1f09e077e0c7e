"""What a network is conditioned on, as one value: guidance batches it without knowing its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cond:
    """Conditions of a batch of b pictures; a field that a network does not read is None."""

    states: Tensor  # (b, n, width): the text, one state for each token
    pooled: Tensor | None = None  # (b, width): the text as a whole
    extra: Tensor | None = None  # (b, k): further vectors, such as embedded sizes

    def __len__(self) -> int:
        """The size of the batch."""
        return len(self.states)

    def __getitem__(self, rows: slice) -> Cond:
        """Some of the batch."""
        return self._each(lambda x: x[rows])

    def expand(self, b: int) -> Cond:
        """A batch of one condition as b views of it."""
        return self._each(lambda x: x.expand(b, *x.shape[1:]))

    def to(self, *args: Any) -> Cond:
        """On a device or in a dtype, as `Tensor.to` takes them."""
        return self._each(lambda x: x.to(*args))

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """One batch of several. Raises TypeError where a field is None in some of them only."""
        states, *others = zip(*((part.states, part.pooled, part.extra) for part in parts), strict=True)
        pooled, extra = (None if all(x is None for x in column) else torch.cat(column) for column in others)
        return Cond(torch.cat(states), pooled, extra)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cond:
        pooled, extra = (None if x is None else change(x) for x in (self.pooled, self.extra))
        return Cond(change(self.states), pooled, extra)
