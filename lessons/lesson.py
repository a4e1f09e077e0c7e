"""Shared by the lessons: their full and short form, the precision of training, and rows of pictures.

`LESSON=short` runs each with smaller numbers, in at most a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import matplotlib.pyplot as plt
from PIL import Image
from torch import Tensor

from gradina.runtime.device import multiplies_bf16

T = TypeVar("T")
SHORT = os.environ.get("LESSON") == "short"
PRECISION: Literal["float32", "bfloat16"] = "bfloat16" if multiplies_bf16() else "float32"


def full_or_short(full: T, short: T) -> T:
    """`full` when a lesson is executed for its page, `short` in tests."""
    return short if SHORT else full


def show(rows: Sequence[Iterable[Tensor | Image.Image]], labels: Sequence[str]) -> None:
    """Shows labelled rows of pictures: tensors (1, h, w) in grey, or Pillow images."""
    table = [list(row) for row in rows]
    columns = len(table[0])
    _, axes = plt.subplots(len(table), columns, figsize=(9, 9.3 * len(table) / columns), squeeze=False)
    for row_axes, label, pictures in zip(axes, labels, table, strict=True):
        for picture, ax in zip(pictures, row_axes, strict=True):
            ax.imshow(picture[0].numpy() if isinstance(picture, Tensor) else picture, cmap="gray")
            ax.set(xticks=[], yticks=[])
            ax.set_frame_on(False)
        row_axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    plt.show()
