"""Little memory: networks stay in their files, and one at a time is taken out of them to compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from gradina.adapters.inject import Network, shallow_clone
from gradina.kernels.prepack import packed
from gradina.nn.memory import trim_heap, trim_threshold
from gradina.weights.safetensors import MappedFiles, to_dtype


class SequentialOffload:
    """Wakes networks in a type of numbers; the one that was awake before goes to sleep. Several models may share it."""

    def __init__(self, dtype: torch.dtype, files: Sequence[Path]) -> None:
        trim_threshold()
        self.dtype, self.files = dtype, files
        self.asleep: nn.Module | None = None  # the network as it lies in its file, of the one that is
        self.awake: nn.Module | None = None

    def __call__(self, network: Network) -> Network:
        """The network, ready to compute."""
        if self.asleep is not network:
            self.awake = None
            convert = partial(to_dtype, dtype=self.dtype, mapped=MappedFiles(*self.files))
            self.asleep, self.awake = network, packed(shallow_clone(network), convert)
            trim_heap()
        return cast(Network, self.awake)
