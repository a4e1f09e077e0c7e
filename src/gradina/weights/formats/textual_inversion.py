"""Embeddings of textual inversion: files of diffusers and A1111's web UI are read; those written here open in both."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradina.adapters.textual_inversion import Concept
from gradina.errors import WeightsError
from gradina.models.bpe import normalized
from gradina.models.tokenizer import as_placeholder
from gradina.request import parse_concept
from gradina.weights.formats.ckpt import InertParameterDict
from gradina.weights.safetensors import open_weights, save_weights

log = logging.getLogger(__name__)

UNNAMED = ("emb_params", "*", "string_to_param.*", "clip_l")  # names of vectors whose token is the name of the file
SDXL = {"clip_l", "clip_g"}  # the text towers of Stable Diffusion XL
MIN_WIDTH = 16  # of vectors; narrower tensors are something else


def read_embedding(source: str | PathLike[str]) -> Concept:
    """The embedding in a safetensors file, given as FILE or, to rename it, as WORD=FILE. Raises WeightsError."""
    word, file = parse_concept(str(source))
    path = Path(file)
    if word is not None and (len(word.split()) != 1 or not file):
        such = f", such as {as_placeholder(word) or '<teddy>'}={file or 'teddy.safetensors'}"
        raise WeightsError(f"{source}: expected WORD=FILE with a word without spaces{such}")
    embedding = embedding_of(open_weights(path).tensors, path)
    if word is not None:
        return replace(embedding, token=as_placeholder(word))
    if embedding.token != normalized(path.stem):
        log.warning("%s: is the embedding of %s; WORD=%s gives it another name", path, embedding.token, path)
    return embedding


def is_embedding(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file with these tensors holds embeddings, and nothing else."""
    return _are_vectors(tensors) and (set(tensors) == SDXL or len(tensors) == 1 or _are_several(tensors))


def pickled_embedding(path: Path, content: Any) -> dict[str, Tensor] | None:
    """The vectors in a pickle of diffusers or A1111's web UI by token, else None. Raises WeightsError for several."""
    if not isinstance(content, Mapping):
        return None
    params = content.get("string_to_param")
    if isinstance(params, InertParameterDict):
        params = params.parameters
    if isinstance(params, Mapping):
        if len(params) > 1:
            tokens = ", ".join(map(str, params))
            raise WeightsError(f"{path}: holds {len(params)} embeddings ({tokens}); expected one")
        names = (content.get("name"), *params, path.stem)
        name = next(name for name in names if isinstance(name, str) and name not in ("", "*"))
        named = dict.fromkeys([name], *params.values()) if params else {}
    else:
        tensors = {name: x for name, x in content.items() if isinstance(name, str) and isinstance(x, Tensor)}
        several = len(tensors) == len(content) and _are_several(tensors)
        named = dict(content) if len(content) == 1 or set(content) == SDXL or several else {}
    found = {name: x.detach() for name, x in named.items() if isinstance(name, str) and isinstance(x, Tensor)}
    return found if found and _are_vectors(found) else None


def _are_vectors(tensors: Mapping[str, Tensor]) -> bool:
    return all(x.ndim in (1, 2) and x.shape[-1] >= MIN_WIDTH for x in tensors.values())


def _are_several(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are embeddings as one file may hold several: vectors of one width, by names without a dot."""
    widths = {x.shape[-1] if x.ndim == 1 or (x.ndim == 2 and len(x) < x.shape[-1]) else 0 for x in tensors.values()}
    return len(tensors) > 1 and len(widths) == 1 and min(widths) >= MIN_WIDTH and not any("." in n for n in tensors)


def embedding_of(tensors: Mapping[str, Tensor], path: Path) -> Concept:
    """The embedding among a file's tensors, its token as in prompts: lower case, hyphens. Raises WeightsError."""
    if set(tensors) >= SDXL:
        raise WeightsError(f"{path}: is for SDXL, with vectors for two text towers; expected one for SD 1.x or 2.x")
    (name, vectors), *others = tensors.items() if tensors else [("", Tensor())]
    if others or not tensors:
        what = "embeddings" if _are_several(tensors) else "tensors"
        names = ", ".join([name, *(other for other, _ in others)][:3]) or "none"
        raise WeightsError(
            f"{path}: expected one embedding, as (k, width) vectors; it holds {len(tensors)} {what} ({names})"
        )
    if vectors.ndim not in (1, 2) or not vectors.numel() or not vectors.is_floating_point():
        got = f"{str(vectors.dtype).removeprefix('torch.')} {tuple(vectors.shape)}"
        raise WeightsError(f"{path}: expected one embedding, as (k, width) vectors of floating point; {name} is {got}")
    vectors = vectors.float().reshape(-1, vectors.shape[-1])
    if not torch.isfinite(vectors).all():
        raise WeightsError(f"{path}: {name} holds NaN or infinite values; fetch or make the file again")
    token = as_placeholder(path.stem if name in UNNAMED else name) or as_placeholder(path.stem)
    return Concept(token, vectors, path)


def write_embedding(
    embedding: Concept,
    path: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes an embedding, for diffusers and A1111's web UI alike; in fp32, or in `dtype`. Raises DiskError."""
    tensors = {as_placeholder(embedding.token): embedding.vectors.detach()}  # lower case, as transformers has prompts
    save_weights(tensors, Path(path), metadata, dtype or torch.float32)
