"""Files of words that were learnt by textual inversion: those of diffusers and of A1111's web UI; ours open in both."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from torch import Tensor

from gradina.adapters.textual import Concept
from gradina.errors import WeightsError
from gradina.weights.store import open_weights, save_weights

A1111 = "emb_params"  # the name of the vectors where the word is that of the file


def read_concept(path: str | PathLike[str]) -> Concept:
    """The word in a safetensors file. Raises WeightsError for a file that holds none."""
    path = Path(path)
    return concept_of(open_weights(path).tensors, path)


def concept_of(tensors: Mapping[str, Tensor], path: Path) -> Concept:
    """The word among the tensors of a file."""
    if {"clip_l", "clip_g"} <= set(tensors):
        raise WeightsError(f"{path}: is for SDXL, with vectors for two text towers; expected one for SD 1.x or 2.x")
    (name, vectors), *others = tensors.items() if tensors else [("", Tensor())]
    if others or vectors.ndim not in (1, 2) or not vectors.numel():
        names = ", ".join([name, *(other for other, _ in others)][:3])
        raise WeightsError(f"{path}: expected one word, as (k, width) vectors; it holds {len(tensors)} names ({names})")
    token = path.stem if name == A1111 else name
    return Concept(token, vectors.float().reshape(-1, vectors.shape[-1]))


def write_concept(concept: Concept, path: str | PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a word, for diffusers and A1111's web UI alike. Raises DiskError."""
    save_weights({concept.token: concept.vectors.detach().float()}, Path(path), metadata)
