"""Aspect ratio buckets: pictures of any shape, resized and cropped to a few sizes of about the same area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

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
