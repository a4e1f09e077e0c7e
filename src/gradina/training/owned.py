"""Pictures of one's own with captions: from a folder or from shards, cropped into buckets, encoded once.

Captions are found where others keep them: in `metadata.jsonl` or `metadata.csv`, in a `.txt` beside each picture, or
else in the names of the files. Shards are tar files in the layout of webdataset.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from gradina.errors import PictureError, RecipeError
from gradina.files import cache_folder
from gradina.models.vae import AutoencoderKL
from gradina.pictures import SUFFIXES, open_picture, pictures_in
from gradina.pipeline import StableDiffusion, to_pixels
from gradina.training.checkpoint import once
from gradina.training.data import generator
from gradina.weights.store import digest

log = logging.getLogger(__name__)

CAPTION_KEYS = ("text", "caption", "prompt")  # what captions are called in tables of metadata
LONGEST = 2.0  # times as long as wide: of the buckets
CROPS = 8  # of each picture, where they are drawn by chance
NAMED = 3  # files in an error


@dataclass(frozen=True)
class Captioned:
    """A picture and its caption: in a file, or in one of a shard."""

    file: Path
    caption: str
    member: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.file}/{self.member}" if self.member else str(self.file)

    def data(self) -> bytes:
        """The bytes of the picture."""
        if not self.member:
            return self.file.read_bytes()
        with tarfile.open(self.file) as shard:
            found = shard.extractfile(self.member)
            assert found is not None
            return found.read()


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

    def __len__(self) -> int:
        return sum(map(len, self.captions))

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape (c, h, w) of the latents with the most numbers."""
        return max((tuple(mean.shape[2:]) for mean in self.mean), key=math.prod)

    def batch(self, count: int, key: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents (count, c, h, w) of pictures of one shape, drawn by chance, and their captions."""
        place = int(torch.randint(len(self), (1,), generator=key))
        b = 0
        while place >= len(self.captions[b]):
            place -= len(self.captions[b])
            b += 1
        mean, std = self.mean[b], self.std[b]
        rows = torch.randint(mean.shape[0], (count,), generator=key)
        crops = torch.randint(mean.shape[1], (count,), generator=key)
        noise = torch.randn(count, *mean.shape[2:], generator=key)
        return mean[rows, crops] + std[rows, crops] * noise, [self.captions[b][i] for i in rows.tolist()]


def read_folder(source: str | Path, caption: str | None = None) -> list[Captioned]:
    """The pictures of a folder or of shards; `caption` is that of all, where they need none of their own.

    Raises RecipeError, naming files, where there are no pictures, or captions are missing for some.
    """
    source = Path(source)
    if source.is_file() and source.suffix == ".tar":
        return _sharded([source], caption)
    if not source.is_dir():
        raise RecipeError(f"{source}: there is no such folder of pictures")
    pictures = pictures_in(source)
    shards = sorted(source.glob("*.tar"))
    if not pictures and shards:
        return _sharded(shards, caption)
    if not pictures:
        raise RecipeError(f"{source}: holds no pictures (expected {', '.join(SUFFIXES[:4])}, ... or .tar shards)")
    if caption is not None:
        return [Captioned(p, caption) for p in pictures]
    return _with_captions(source, pictures, _captions(source, pictures))


def _captions(source: Path, pictures: Sequence[Path]) -> Mapping[Path, str]:
    """The captions that there are, from the first place that has any."""
    for name, rows in (("metadata.jsonl", _json_lines), ("metadata.csv", _csv_rows)):
        table = source / name
        if table.is_file():
            return _told(table, rows(table))
    beside = {p: p.with_suffix(".txt") for p in pictures}
    if any(text.is_file() for text in beside.values()):
        return {p: text.read_text(encoding="utf-8").strip() for p, text in beside.items() if text.is_file()}
    return {p: spoken(p.stem) for p in pictures}


def _with_captions(source: Path, pictures: Sequence[Path], captions: Mapping[Path, str]) -> list[Captioned]:
    gone = [str(p) for p in captions if not p.is_file()]
    if gone:
        raise RecipeError(f"{source}: {len(gone)} pictures with a caption are not there ({_some(gone)})")
    dumb = [str(p.relative_to(source)) for p in pictures if not captions.get(p)]
    if dumb:
        raise RecipeError(f"{source}: captions are missing for {len(dumb)} of {len(pictures)} pictures ({_some(dumb)})")
    return [Captioned(p, captions[p]) for p in pictures]


def spoken(stem: str) -> str:
    """The name of a file as a caption: "a_red-boat (2)" is "a red boat"; what is only a number says nothing."""
    words = re.sub(r"[\s_-]+", " ", re.sub(r"\(\d+\)", "", stem)).strip()
    return re.sub(r"(^| )\d+$", "", words).strip()


def _json_lines(table: Path) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RecipeError(f"{table}: line {number} is no JSON ({error})") from error
            yield row if isinstance(row, dict) else {}


def _csv_rows(table: Path) -> Iterator[Mapping[str, object]]:
    with table.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _told(table: Path, rows: Iterable[Mapping[str, object]]) -> dict[Path, str]:
    found = {}
    for number, row in enumerate(rows, 1):
        caption = next((row[key] for key in CAPTION_KEYS if row.get(key)), "")
        if not isinstance(row.get("file_name"), str):
            raise RecipeError(f"{table}: row {number} has no file_name; expected file_name and {CAPTION_KEYS[0]}")
        found[table.parent / str(row["file_name"])] = str(caption).strip()
    return found


def _sharded(shards: Sequence[Path], caption: str | None) -> list[Captioned]:
    """The pictures in shards: KEY.jpg with KEY.txt, or KEY.json that says it."""
    found: list[Captioned] = []
    dumb: list[Captioned] = []
    for path in shards:
        try:
            with tarfile.open(path) as shard:
                members = {m.name: m for m in shard.getmembers() if m.isfile()}
                for name in members:
                    if PurePosixPath(name).suffix.lower() in SUFFIXES:
                        text = caption if caption is not None else _beside(shard, members, name)
                        (found if text else dumb).append(Captioned(path, text or "", name))
        except tarfile.TarError as error:
            raise RecipeError(f"{path}: is no tar file ({error})") from error
    if dumb:
        names = _some([one.name for one in dumb])
        raise RecipeError(f"captions are missing for {len(dumb)} of {len(dumb) + len(found)} pictures ({names})")
    if not found:
        raise RecipeError(f"{_some([str(p) for p in shards])}: hold no pictures")
    return found


def _beside(shard: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> str:
    stem = name.removesuffix(PurePosixPath(name).suffix)
    for ending in (".txt", ".json"):
        file = shard.extractfile(members[stem + ending]) if stem + ending in members else None
        if file is not None:
            text = file.read().decode("utf-8", "replace").strip()
            if ending == ".txt":
                return text
            try:
                row = json.loads(text)
            except ValueError:
                return ""
            return next((str(row[key]) for key in CAPTION_KEYS if row.get(key)), "")
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


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


def cropped(image: Image.Image, shape: tuple[int, int], across: float = 0.5, down: float = 0.5) -> Image.Image:
    """A picture resized to cover a shape, and of the rest the place at shares of the way across and down."""
    scale = max(want / have for want, have in zip(shape, image.size, strict=True))
    width, height = (max(want, round(scale * have)) for want, have in zip(shape, image.size, strict=True))
    whole = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round(across * (width - shape[0])), round(down * (height - shape[1]))
    return whole.crop((left, top, left + shape[0], top + shape[1]))


def encoded(model: StableDiffusion, pictures: Sequence[Captioned], crop: Crop, pixels: int, seed: int = 0) -> Owned:
    """The latents of all pictures, of about so many pixels each; kept on disk under a hash of encoder and settings.

    Raises RecipeError, naming files, for pictures that are too small or cannot be read.
    """
    among = shapes(pixels, model.vae.config.factor * 2 ** (len(model.unet.config.widths) - 1), crop.buckets)
    opened: dict[Captioned, tuple[Image.Image, tuple[int, int]]] = {}
    small, marks = [], []
    for one in pictures:
        data = one.data()
        try:
            image = open_picture(data, one.name)
        except PictureError as error:
            raise RecipeError(str(error)) from error
        shape = nearest(image.size, among)
        if not crop.enlarge and any(have < want for have, want in zip(image.size, shape, strict=True)):
            small.append(f"{one.name}: {image.width}x{image.height}")
        opened[one] = image, shape
        marks.append((hashlib.sha256(data).hexdigest(), one.caption))
    if small:
        size = "x".join(map(str, among[0]))
        raise RecipeError(
            f"{len(small)} of {len(pictures)} pictures are too small, expected about {size} pixels ({_some(small)}); "
            "take larger ones, or allow that they are enlarged"
        )
    order = [shape for shape, _ in Counter(shape for _, shape in opened.values()).most_common()]
    means, stds, captions = [], [], []
    encoder = digest(model.vae)
    for shape in order:
        rows = [(one, image) for one, (image, its) in opened.items() if its == shape]
        of_these = [mark for mark, (_, its) in zip(marks, opened.values(), strict=True) if its == shape]
        name = hashlib.sha256(repr((encoder, shape, crop, seed, of_these)).encode()).hexdigest()[:24]
        path = cache_folder() / "latents" / f"{name}.safetensors"
        said = once(path, name, partial(_encode, model.vae, rows, shape, crop, seed))
        means.append(said["mean"] * model.vae.config.scale)
        stds.append(said["std"] * model.vae.config.scale)
        captions.append(tuple(one.caption for one, _ in rows))
    return Owned(tuple(means), tuple(stds), tuple(captions))


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
