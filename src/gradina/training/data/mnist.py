"""MNIST with captions, 32 x 32 pixels, from files in LeCun's IDX format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.errors import RecipeError
from gradina.training.data.dataset import Split, augment

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = (
    "a handwritten {word}", "a handwritten {digit}", "the digit {digit}", "the digit {word}", "the number {digit}",
    "the number {word}", "a {word}", "{word}", "{digit}", "a handwritten digit {word}", "a handwritten digit {digit}",
    "a picture of a {word}", "a picture of the digit {digit}", "the handwritten number {word}",
)  # fmt: skip


@dataclass(frozen=True)
class LabelledImages:
    """Pictures with class labels, and for each class the wordings that describe it; a `Dataset`."""

    images: Tensor  # (n, c, h, w) uint8; one channel is grey
    labels: Tensor  # (n,) int64, rows of `wordings`
    wordings: tuple[tuple[str, ...], ...]  # for each class

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Tensor) -> Tensor:
        return (self.images[rows].float() / 127.5 - 1).expand(-1, 3, -1, -1)

    def augmented(self, rows: Tensor, degrees: float, key: torch.Generator) -> Tensor:
        return augment(self.pixels(rows), degrees, key)

    def captions(self, rows: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        """A random wording of each picture's class, which matches all pictures of that class."""
        labels = self.labels[rows]
        wordings = [self.wordings[label] for label in labels.tolist()]
        chances = torch.rand(len(rows), generator=key).tolist()
        return [each[int(c * len(each))] for each, c in zip(wordings, chances, strict=True)], labels[:, None] == labels

    def contrastive_rows(self, count: int, key: torch.Generator) -> Tensor:
        """Rows (count,), drawn evenly: words do not tell pictures of one class apart."""
        return torch.randint(len(self), (count,), generator=key)

    def texts(self) -> list[str]:
        return [wording for wordings in self.wordings for wording in wordings]

    def phrases(self) -> tuple[tuple[str, ...], ...]:
        return (tuple(wordings[0] for wordings in self.wordings),)

    def class_ids(self, rows: Tensor) -> Tensor:
        return self.labels[rows]


def read_idx(path: Path) -> Tensor:
    """A file of LeCun's IDX format with unsigned bytes, as a uint8 tensor of its shape; raises RecipeError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); it belongs to the data set") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise RecipeError(f"{path}: not an IDX file of unsigned bytes (starts with {data[:4].hex() or 'nothing'})")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if body.size != shape.prod():
        raise RecipeError(f"{path}: {body.size} bytes of data where the header says {'x'.join(map(str, shape))}")
    return torch.from_numpy(body.reshape(shape).copy())


def mnist(folder: Path, split: Split = "train") -> LabelledImages:
    """Handwritten digits, 32x32: MNIST's 28x28 on a black margin, captioned in words. Source: LeCun et al. 1998."""
    part = "t10k" if split == "held out" else "train"
    images = read_idx(folder / "data" / f"{part}-images-idx3-ubyte")
    labels = read_idx(folder / "data" / f"{part}-labels-idx1-ubyte")
    wordings = tuple(tuple(w.format(word=word, digit=digit) for w in WORDINGS) for digit, word in enumerate(WORDS))
    return LabelledImages(F.pad(images, (2, 2, 2, 2))[:, None], labels.long(), wordings)
