"""What the tests of the pipeline share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from gradina.pipeline.model import StableDiffusion


def grey(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in grey levels."""
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


@contextmanager
def counted(model: StableDiffusion) -> Iterator[list[int]]:
    """How many pictures the U-Net was asked about, call by call."""
    calls: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    yield calls
    hook.remove()
