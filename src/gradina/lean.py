"""Little memory: networks stay in their files, and one at a time is taken out of them to compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from gradina.adapters.inject import Network, replaced
from gradina.nn.packed import packed
from gradina.weights.mapped import Mapped
from gradina.weights.store import in_type


class Lean:
    """Wakes networks in a type of numbers; the one that was awake before goes to sleep. Several models may share it."""

    def __init__(self, dtype: torch.dtype, files: Sequence[Path]) -> None:
        self.dtype, self.files = dtype, files
        self.asleep: nn.Module | None = None  # the network as it lies in its file, of the one that is
        self.awake: nn.Module | None = None

    def __call__(self, network: Network) -> Network:
        """The network, ready to compute."""
        if self.asleep is not network:
            self.awake = None
            mapped, numbers = Mapped(*self.files), {}
            for name, x in network.named_parameters():
                numbers[name] = in_type(x.detach(), self.dtype, mapped)
            self.asleep, self.awake = network, packed(replaced(network, numbers))
        return cast(Network, self.awake)
