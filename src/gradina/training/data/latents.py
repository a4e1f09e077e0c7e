"""Captioned pictures as a dataset of latents: fitted to buckets, encoded once, cached on disk, drawn at random.

Aspect ratio buckets are a few sizes of about the same area, to which pictures of any shape are resized and cropped.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from PIL import Image
from torch import Tensor

from gradina.errors import PictureError, RecipeError
from gradina.files import cache_folder
from gradina.images.open import MAX_SOURCE_PIXELS, is_animated, open_picture
from gradina.images.tensor import to_pixels
from gradina.models.vae import AutoencoderKL
from gradina.pipeline.model import StableDiffusion
from gradina.training.checkpoint import cached_tensors
from gradina.training.data.captioned_image import CaptionedImage, Note, collected_notes, first_few
from gradina.training.data.dataset import generator
from gradina.weights.safetensors import digest

log = logging.getLogger(__name__)

MAX_ASPECT = 2.0  # of a bucket, its longer side over its shorter one
RANDOM_CROPS = 8  # of each picture

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Crop:
    """How pictures are fitted to a bucket; names of fields are a part of the key under which latents are cached."""

    chance: bool = False  # random crops instead of the centre
    flip: bool = False  # mirror images, too
    enlarge: bool = False  # pictures that are too small, instead of refusing them
    buckets: bool = True  # of other shapes than the square


def bucket_sizes(pixels: int, multiple: int, square: bool = False) -> list[Size]:
    """Sizes of at most so many pixels, with sides that are multiples of `multiple`; the square comes first."""
    side = max(multiple, math.isqrt(pixels) // multiple * multiple)
    found = {(side, side): None}
    for width in range(multiple, int(side * MAX_ASPECT) + 1, multiple) if not square else ():
        height = pixels // width // multiple * multiple
        if height >= multiple and max(width / height, height / width) <= MAX_ASPECT:
            found[width, height] = None
    return list(found)


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest to that of a picture."""
    width, height = size
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1] * height / width)))


def resize_to_cover(image: Image.Image, size: Size) -> Image.Image:
    """The picture scaled so that it just covers a size; one that does so already stays as it is."""
    scale = max(want / have for want, have in zip(size, image.size, strict=True))
    width, height = (max(want, round(scale * have)) for want, have in zip(size, image.size, strict=True))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def crop_at(image: Image.Image, size: Size, across: float = 0.5, down: float = 0.5) -> Image.Image:
    """The picture scaled to cover a size, then cropped at these fractions of the remaining width and height."""
    whole = resize_to_cover(image, size)
    left, top = (round(across * (whole.width - size[0])), round(down * (whole.height - size[1])))
    return whole.crop((left, top, left + size[0], top + size[1]))


def crops(image: Image.Image, size: Size, crop: Crop, key: torch.Generator) -> list[Image.Image]:
    """The centre crop or some random crops of a picture, then the mirror images of all."""
    at = torch.rand(RANDOM_CROPS, 2, generator=key).tolist() if crop.chance else [(0.5, 0.5)]
    found = [crop_at(image, size, across, down) for across, down in at]
    return found + [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in found if crop.flip]


@dataclass(frozen=True, eq=False)
class LatentDataset:
    """For each bucket the latents' means and standard deviations (n, crops, c, h, w), and n captions."""

    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]
    captions: tuple[tuple[str, ...], ...]
    repeats: tuple[tuple[int, ...], ...] = ()  # how many times as often each picture is drawn; (): all alike

    def __len__(self) -> int:
        return sum(map(len, self.captions))

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape (c, h, w) of the largest latents."""
        return max((tuple(mean.shape[2:]) for mean in self.mean), key=math.prod)

    @cached_property
    def _cumulative(self) -> list[Tensor]:
        """For each bucket, the cumulative repeats of its pictures."""
        repeats = self.repeats or tuple((1,) * len(captions) for captions in self.captions)
        return [torch.tensor(of).cumsum(0) for of in repeats]

    def batch(self, count: int, key: torch.Generator) -> tuple[Tensor, list[str]]:
        """Random latents (count, c, h, w) of pictures in one bucket, and their captions."""
        totals = torch.stack([ends[-1] for ends in self._cumulative]).cumsum(0)
        draw = torch.randint(int(totals[-1]), (1,), generator=key)
        bucket = int(torch.searchsorted(totals, draw, right=True))
        mean, std, ends = self.mean[bucket], self.std[bucket], self._cumulative[bucket]
        rows = torch.searchsorted(ends, torch.randint(int(ends[-1]), (count,), generator=key), right=True)
        crop = torch.randint(mean.shape[1], (count,), generator=key)
        noise = torch.randn(count, *mean.shape[2:], generator=key)
        return mean[rows, crop] + std[rows, crop] * noise, [self.captions[bucket][i] for i in rows.tolist()]


def encode_pictures(
    model: StableDiffusion, pictures: Sequence[CaptionedImage], crop: Crop, pixels: int, seed: int = 0
) -> LatentDataset:
    """The latents of pictures, each in a bucket of about so many pixels; cached under a hash of encoder and settings.

    Raises RecipeError, naming files, for pictures that are too small or cannot be read.
    """
    multiple = model.vae.config.factor * 2 ** (len(model.unet.config.widths) - 1)
    fitted = _fit(pictures, bucket_sizes(pixels, multiple, square=not crop.buckets), crop)
    encoder = digest(model.vae)
    buckets = []
    for size, rows in sorted(fitted.items(), key=lambda bucket: -len(bucket[1])):
        keys = [key for _, _, key in rows]
        name = hashlib.sha256(repr((encoder, size, crop, seed, keys)).encode()).hexdigest()[:24]
        path = cache_folder() / "latents" / f"{name}.safetensors"
        posterior = cached_tensors(path, name, partial(_encode, model.vae, rows, size, crop, seed))
        mean, std = (posterior[part] * model.vae.config.scale for part in ("mean", "std"))
        captions, repeats = zip(*((picture.caption, picture.repeats) for picture, _, _ in rows), strict=True)
        buckets.append((mean, std, captions, repeats))
    return LatentDataset(*zip(*buckets, strict=True))


Fitted = tuple[CaptionedImage, Image.Image, tuple[str, str]]  # resized to cover its bucket; its key in the cache


def _fit(pictures: Sequence[CaptionedImage], buckets: Sequence[Size], crop: Crop) -> dict[Size, list[Fitted]]:
    """The pictures of each bucket, resized at once, so that memory holds no more."""
    fitted: dict[Size, list[Fitted]] = {}
    small = []
    with collected_notes() as note:
        for picture in pictures:
            data = picture.data()
            image = _open(picture, data, note)
            size = nearest_bucket(image.size, buckets)
            if not crop.enlarge and any(have < want for have, want in zip(image.size, size, strict=True)):
                small.append(f"{picture.name}: {image.width}x{image.height}")
            else:
                image = resize_to_cover(image, size)
            key = hashlib.sha256(data).hexdigest(), picture.caption
            fitted.setdefault(size, []).append((picture, image, key))
    if small:
        expected = "x".join(map(str, buckets[0]))
        raise RecipeError(
            f"{len(small)} of {len(pictures)} pictures are too small, expected about {expected} pixels "
            f"({first_few(small)}); take larger ones, or allow that they are enlarged"
        )
    return fitted


def _open(picture: CaptionedImage, data: bytes, note: Note) -> Image.Image:
    try:
        if is_animated(data, picture.name):
            note(picture.name, "is animated, or has several pages, of which the first is read")
        return open_picture(data, picture.name, MAX_SOURCE_PIXELS)
    except PictureError as error:
        raise RecipeError(str(error)) from error


@torch.no_grad()
def _encode(vae: AutoencoderKL, rows: Sequence[Fitted], size: Size, crop: Crop, seed: int) -> dict[str, Tensor]:
    log.info("encoding %d pictures", len(rows))
    like, means, stds = vae.quant.weight, [], []
    for picture, image, _ in rows:
        parts = crops(image, size, crop, generator(seed, "crop", picture.name))
        posteriors = [vae.posterior(to_pixels(part)[None].to(like.device, like.dtype)) for part in parts]
        means.append(torch.cat([p.mean.float().cpu() for p in posteriors]))
        stds.append(torch.cat([torch.exp(0.5 * p.logvar.float()).cpu() for p in posteriors]))
    return {"mean": torch.stack(means), "std": torch.stack(stds)}
