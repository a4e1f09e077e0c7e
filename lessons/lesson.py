"""What the lessons share: how much of each is done, and how pictures are shown.

`LESSON=short` does the same with less, in at most a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import matplotlib.pyplot as plt
from PIL import Image
from torch import Tensor

T = TypeVar("T")
SHORT = os.environ.get("LESSON") == "short"


def whole(much: T, little: T) -> T:
    """`much` where a lesson is executed as a whole, `little` where it is tried."""
    return little if SHORT else much


def show(rows: Sequence[Iterable[Tensor | Image.Image]], labels: Sequence[str]) -> None:
    """Rows of pictures, each row behind its label: grey (1, h, w) from darkest to brightest, or of Pillow's."""
    table = [list(row) for row in rows]
    across = len(table[0])
    _, places = plt.subplots(len(table), across, figsize=(9, 9.3 * len(table) / across), squeeze=False)
    for along, label, pictures in zip(places, labels, table, strict=True):
        for picture, place in zip(pictures, along, strict=True):
            place.imshow(picture[0].numpy() if isinstance(picture, Tensor) else picture, cmap="gray")
            place.set(xticks=[], yticks=[])
            place.set_frame_on(False)
        along[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    plt.show()
