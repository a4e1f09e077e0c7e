"""Sequential offload for little memory: networks stay in their files, and one at a time is loaded to compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from gradina.adapters.inject import Network, shallow_clone
from gradina.runtime.memory import trim_heap, trim_threshold
from gradina.runtime.prepack import prepack
from gradina.weights.safetensors import MappedFiles, to_dtype


class SequentialOffload:
    """Loads a network in a dtype and drops the one that was loaded before. Several models may share it."""

    def __init__(self, dtype: torch.dtype, files: Sequence[Path]) -> None:
        trim_threshold()
        self.dtype, self.files = dtype, files
        self.offloaded: nn.Module | None = None  # the network around the tensors of its file, whose
        self.loaded: nn.Module | None = None  # copy in memory this is

    def __call__(self, network: Network) -> Network:
        """The network, ready to compute."""
        if self.offloaded is not network:
            self.loaded = None
            convert = partial(to_dtype, dtype=self.dtype, mapped=MappedFiles(*self.files))
            self.offloaded, self.loaded = network, prepack(shallow_clone(network), convert)
            trim_heap()
        return cast(Network, self.loaded)
