"""Retrieval by a contrastive pair: captions for pictures, pictures for words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.errors import RequestError, WeightsError
from gradina.finite import finite
from gradina.images.open import MAX_SOURCE_PIXELS, open_picture, resize_and_center_crop
from gradina.runtime.device import pick_device, pick_dtype
from gradina.weights.components import Components
from gradina.weights.formats.clip import ContrastivePair, Phrases, read_pair
from gradina.weights.formats.diffusers_layout import PAIR
from gradina.weights.registry import locate_pair

if TYPE_CHECKING:
    from gradina.request import ImageLike

Pictures: TypeAlias = "Tensor | Sequence[ImageLike]"  # embeddings (n, d), or the pictures to embed

BATCH_SIZE = 32  # of pictures or texts in a tower
BEAM_WIDTH = 16  # prefixes of captions kept from part to part


@dataclass(frozen=True)
class Caption:
    """A text that describes a picture, and its probability among all texts that it was compared with."""

    text: str
    probability: float


@dataclass(frozen=True)
class Hit:
    """A picture by its index, and its cosine similarity to the words, -1..1."""

    index: int
    score: float


def open_pair(
    source: str | PathLike[str] | Components | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> ContrastivePair:
    """The pair of a model, or that `locate_pair` finds. Raises WeightsError, HubError, RequestError for the device."""
    place = pick_device(device)
    if isinstance(source, Components):
        if source.clip is None:
            raise WeightsError(f"{source.name}: came without an image tower; name a model that has one")
        folder, name = source.clip, source.name
    else:
        folder = locate_pair(source)
        own = folder.parent if folder.name == PAIR else folder
        name = own.resolve().name if source is None else str(source)
    exact = "fp32" if place.type == "cpu" else None  # near misses differ by little, and it is fast anyway
    pair = read_pair(folder, pick_dtype(dtype or exact, place), name)
    pair.clip.requires_grad_(False).to(place)
    return pair


def preprocess(pair: ContrastivePair, picture: ImageLike) -> Tensor:
    """The image tower's input (3, h, w), that of transformers' CLIPImageProcessor. Raises PictureError."""
    small = resize_and_center_crop(open_picture(picture, "picture", MAX_SOURCE_PIXELS), pair.size, pair.resample)
    pixels = torch.from_numpy(np.array(small, dtype=np.float32)) / 255
    return ((pixels - torch.tensor(pair.mean)) / torch.tensor(pair.std)).permute(2, 0, 1)


@torch.no_grad()
def embed_pixels(pair: ContrastivePair, pixels: Tensor) -> Tensor:
    """Embeddings (n, d) of length 1, fp32 on the CPU, of preprocessed pixels (n, 3, h, w)."""
    parts = [pair.clip.vision(some.to(pair.device, pair.dtype)) for some in torch.split(pixels, BATCH_SIZE)]
    embeddings = finite(torch.cat(parts), "image tower", pair.clip.vision, pair.dtype)
    return F.normalize(embeddings.float().cpu(), dim=1)


def embed_pictures(pair: ContrastivePair, pictures: Iterable[ImageLike]) -> Tensor:
    """Embeddings (n, d) of length 1 of pictures of any size, one batch in memory at a time. Raises PictureError."""
    pixels = (preprocess(pair, picture) for picture in pictures)
    parts = [torch.empty(0, pair.clip.vision.config.projection)]
    while some := list(islice(pixels, BATCH_SIZE)):
        parts.append(embed_pixels(pair, torch.stack(some)))
    return torch.cat(parts)


@torch.no_grad()
def embed_texts(pair: ContrastivePair, texts: Sequence[str]) -> Tensor:
    """Embeddings (n, d) of length 1, fp32 on the CPU; texts longer than the context are truncated."""
    if not texts:
        return torch.empty(0, pair.clip.vision.config.projection)
    ids = torch.split(pair.tokenizer(texts), BATCH_SIZE)
    parts = [pair.clip.text.embed(some.to(pair.device)) for some in ids]
    embeddings = finite(torch.cat(parts), "text tower", pair.clip.text, pair.dtype)
    return F.normalize(embeddings.float().cpu(), dim=1)


def scores(pair: ContrastivePair, pictures: Tensor, texts: Tensor) -> Tensor:
    """Logits over texts (pictures, texts) of embeddings (n, d) and (m, d) (Radford et al. 2103.00020, figure 3)."""
    return pair.clip.logit_scale.exp().float().cpu() * pictures @ texts.T


def describe(
    pair: ContrastivePair, pictures: Pictures, phrases: Sequence[str] | None = None, best: int = 5
) -> list[list[Caption]]:
    """For each picture the `best` of the phrases, best first, with probabilities over all of them.

    Without phrases, captions are composed of the pair's own by beam search over its parts, and probabilities are over
    the whole captions at the end. Raises RequestError where there are none.
    """
    parts = parts_of(pair, phrases)
    embeddings = _embeddings(pair, pictures)
    beam: list[list[Caption]] = [[Caption("", 1.0)] for _ in embeddings]
    for k, part in enumerate(parts):
        last = k == len(parts) - 1
        candidates = [_continuations([caption.text for caption in some], part, last) for some in beam]
        beam = _top_captions(pair, embeddings, candidates, best if last else max(best, BEAM_WIDTH))
    return beam


def parts_of(pair: ContrastivePair, phrases: Sequence[str] | None) -> Phrases:
    """The phrases as one part, or the pair's own parts of captions. Raises RequestError where there are none."""
    parts = pair.phrases if phrases is None else (tuple(phrases),)
    if not any(text.strip() for part in parts for text in part):
        given = "none were given" if phrases is not None else f"{pair.name or 'the model'} has none of its own"
        raise RequestError(f"phrases: {given}; give the texts to choose from")
    return parts


def search(pair: ContrastivePair, pictures: Pictures, words: str) -> list[Hit]:
    """All pictures by similarity to the words, most similar first. Raises RequestError for empty words."""
    if not words.strip():
        raise RequestError('words: got none, expected what to look for, such as "a red apple"')
    cosines = _embeddings(pair, pictures) @ embed_texts(pair, [words])[0]
    order = cosines.argsort(descending=True, stable=True).tolist()
    return [Hit(i, cosines[i].item()) for i in order]


def _embeddings(pair: ContrastivePair, pictures: Pictures) -> Tensor:
    return pictures if isinstance(pictures, Tensor) else embed_pictures(pair, pictures)


def _continuations(prefixes: list[str], part: Sequence[str], last: bool) -> list[str]:
    """Each prefix with each text of a part, without duplicates; of the last part, without empty ones."""
    texts = (f"{prefix} {text.strip()}".strip() for prefix in prefixes for text in part)
    return [text for text in dict.fromkeys(texts) if text or not last]


def _top_captions(pair: ContrastivePair, pictures: Tensor, texts: list[list[str]], count: int) -> list[list[Caption]]:
    """The best of each picture's own texts, for embeddings (n, d); a text that several have is embedded once."""
    column = {text: i for i, text in enumerate(dict.fromkeys(text for some in texts for text in some))}
    logits = scores(pair, pictures, embed_texts(pair, list(column)))
    ranked = []
    for row, some in zip(logits, texts, strict=True):
        probabilities = row[[column[text] for text in some]].softmax(0)
        order = probabilities.argsort(descending=True, stable=True)[:count].tolist()
        ranked.append([Caption(some[i], probabilities[i].item()) for i in order])
    return ranked
