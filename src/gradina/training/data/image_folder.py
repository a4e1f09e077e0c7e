"""Pictures of one's own with their captions: cropped into buckets, encoded once, drawn by lot."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from PIL import Image
from torch import Tensor

from gradina.errors import PictureError, RecipeError
from gradina.files import cache_folder
from gradina.images.open import LARGEST, moving, open_picture
from gradina.models.vae import AutoencoderKL
from gradina.pipeline import StableDiffusion, to_pixels
from gradina.training.checkpoint import cached_tensors
from gradina.training.data.batches import generator
from gradina.training.data.captioned import Captioned, Tell, some, spoken, telling
from gradina.training.data.captions import captions_told, read_folder
from gradina.weights.safetensors import digest

__all__ = ["Captioned", "Crop", "Owned", "captions_told", "encoded", "read_folder", "spoken"]

log = logging.getLogger(__name__)

LONGEST = 2.0  # times as long as wide: of the buckets
CROPS = 8  # of each picture, where they are drawn by chance


@dataclass(frozen=True)
class Crop:
    """How pictures are made to fit: the middle, or places by chance; with their mirror images or without."""

    chance: bool = False
    flip: bool = False
    enlarge: bool = False  # pictures that are too small, instead of refusing them
    buckets: bool = True  # of other shapes than the square, for pictures that are long or high


@dataclass(frozen=True, eq=False)
class Owned:
    """What is learnt from: for each bucket latents (n, crops, c, h, w), as mean and deviation, and n captions."""

    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]
    captions: tuple[tuple[str, ...], ...]
    repeats: tuple[tuple[int, ...], ...] = ()  # how many times as often each is drawn; (): all alike

    def __len__(self) -> int:
        return sum(map(len, self.captions))

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape (c, h, w) of the latents with the most numbers."""
        return max((tuple(mean.shape[2:]) for mean in self.mean), key=math.prod)

    @cached_property
    def _ends(self) -> list[Tensor]:
        """For each bucket, where the places of each picture end when each has as many as its repeats."""
        repeats = self.repeats or tuple((1,) * len(captions) for captions in self.captions)
        return [torch.tensor(of).cumsum(0) for of in repeats]

    def batch(self, count: int, key: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents (count, c, h, w) of pictures of one shape, drawn by chance, and their captions."""
        totals = [int(ends[-1]) for ends in self._ends]
        place = int(torch.randint(sum(totals), (1,), generator=key))
        b = 0
        while place >= totals[b]:
            place -= totals[b]
            b += 1
        mean, std = self.mean[b], self.std[b]
        rows = torch.searchsorted(self._ends[b], torch.randint(totals[b], (count,), generator=key), right=True)
        crops = torch.randint(mean.shape[1], (count,), generator=key)
        noise = torch.randn(count, *mean.shape[2:], generator=key)
        return mean[rows, crops] + std[rows, crops] * noise, [self.captions[b][i] for i in rows.tolist()]


def shapes(pixels: int, unit: int, several: bool = True) -> list[tuple[int, int]]:
    """Widths and heights of at most so many pixels, multiples of `unit`; the square comes first."""
    side = max(unit, math.isqrt(pixels) // unit * unit)
    found = {(side, side): None}
    for width in range(unit, int(side * LONGEST) + 1, unit) if several else ():
        height = pixels // width // unit * unit
        if height >= unit and max(width / height, height / width) <= LONGEST:
            found[width, height] = None
    return list(found)


def nearest(size: tuple[int, int], among: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape whose proportions are nearest to those of a picture."""
    width, height = size
    return min(among, key=lambda shape: abs(math.log(shape[0] / shape[1] * height / width)))


def covering(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """A picture resized to cover a shape; one that covers it so already stays as it is."""
    scale = max(want / have for want, have in zip(shape, image.size, strict=True))
    width, height = (max(want, round(scale * have)) for want, have in zip(shape, image.size, strict=True))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, shape: tuple[int, int], across: float = 0.5, down: float = 0.5) -> Image.Image:
    """A picture resized to cover a shape, and of the rest the place at shares of the way across and down."""
    whole = covering(image, shape)
    left, top = (round(across * (whole.width - shape[0])), round(down * (whole.height - shape[1])))
    return whole.crop((left, top, left + shape[0], top + shape[1]))


def encoded(model: StableDiffusion, pictures: Sequence[Captioned], crop: Crop, pixels: int, seed: int = 0) -> Owned:
    """The latents of all pictures, of about so many pixels each; kept on disk under a hash of encoder and settings.

    Raises RecipeError, naming files, for pictures that are too small or cannot be read.
    """
    among = shapes(pixels, model.vae.config.factor * 2 ** (len(model.unet.config.widths) - 1), crop.buckets)
    opened, marks = _fitted(pictures, among, crop)
    order = [shape for shape, _ in Counter(shape for _, shape in opened.values()).most_common()]
    means, stds, captions, repeats = [], [], [], []
    encoder = digest(model.vae)
    for shape in order:
        rows = [(one, image) for one, (image, its) in opened.items() if its == shape]
        of_these = [mark for mark, (_, its) in zip(marks, opened.values(), strict=True) if its == shape]
        name = hashlib.sha256(repr((encoder, shape, crop, seed, of_these)).encode()).hexdigest()[:24]
        path = cache_folder() / "latents" / f"{name}.safetensors"
        said = cached_tensors(path, name, partial(_encode, model.vae, rows, shape, crop, seed))
        means.append(said["mean"] * model.vae.config.scale)
        stds.append(said["std"] * model.vae.config.scale)
        captions.append(tuple(one.caption for one, _ in rows))
        repeats.append(tuple(one.repeats for one, _ in rows))
    return Owned(tuple(means), tuple(stds), tuple(captions), tuple(repeats))


Opened = dict[Captioned, tuple[Image.Image, tuple[int, int]]]  # pictures that cover the shapes of their buckets


def _fitted(
    pictures: Sequence[Captioned], among: Sequence[tuple[int, int]], crop: Crop
) -> tuple[Opened, list[tuple[str, str]]]:
    """Each picture, of which no more is kept in memory than is needed, and what decides its latents."""
    opened: Opened = {}
    small, marks = [], []
    with telling() as tell:
        for one in pictures:
            data = one.data()
            image = _opened(one, data, tell)
            shape = nearest(image.size, among)
            if not crop.enlarge and any(have < want for have, want in zip(image.size, shape, strict=True)):
                small.append(f"{one.name}: {image.width}x{image.height}")
            else:
                image = covering(image, shape)
            opened[one] = image, shape
            marks.append((hashlib.sha256(data).hexdigest(), one.caption))
    if small:
        size = "x".join(map(str, among[0]))
        raise RecipeError(
            f"{len(small)} of {len(pictures)} pictures are too small, expected about {size} pixels ({some(small)}); "
            "take larger ones, or allow that they are enlarged"
        )
    return opened, marks


def _opened(one: Captioned, data: bytes, tell: Tell) -> Image.Image:
    try:
        if moving(data, one.name):
            tell(one.name, "is animated, or has several pages, of which the first is read")
        return open_picture(data, one.name, LARGEST)
    except PictureError as error:
        raise RecipeError(str(error)) from error


def crops_of(image: Image.Image, shape: tuple[int, int], crop: Crop, key: torch.Generator) -> list[Image.Image]:
    """What is learnt from a picture: its middle or some places by chance, each with its mirror image or without."""
    at = torch.rand(CROPS, 2, generator=key).tolist() if crop.chance else [(0.5, 0.5)]
    found = [cropped(image, shape, across, down) for across, down in at]
    mirrored = [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in found] if crop.flip else []
    return found + mirrored


@torch.no_grad()
def _encode(
    vae: AutoencoderKL, rows: Sequence[tuple[Captioned, Image.Image]], shape: tuple[int, int], crop: Crop, seed: int
) -> dict[str, Tensor]:
    log.info("encodes %d pictures", len(rows))
    like, means, stds = vae.quant.weight, [], []
    for one, image in rows:
        crops = crops_of(image, shape, crop, generator(seed, "crop", one.name))
        said = [vae.posterior(to_pixels(part)[None].to(like.device, like.dtype)) for part in crops]
        means.append(torch.cat([p.mean.float().cpu() for p in said]))
        stds.append(torch.cat([torch.exp(0.5 * p.logvar.float()).cpu() for p in said]))
    return {"mean": torch.stack(means), "std": torch.stack(stds)}
