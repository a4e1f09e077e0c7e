"""Files of words that were learnt by textual inversion: those of diffusers and of A1111's web UI; ours open in both."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from gradina.adapters.textual_inversion import Concept
from gradina.errors import WeightsError
from gradina.models.tokenizer import SMALL, as_word
from gradina.request import parse_concept
from gradina.weights.formats.ckpt import NARROWEST, are_words
from gradina.weights.safetensors import open_weights, save_weights

log = logging.getLogger(__name__)

UNNAMED = ("emb_params", "*", "string_to_param.*", "clip_l")  # names of vectors whose word is the name of the file
OF_XL = {"clip_l", "clip_g"}  # the text towers of Stable Diffusion XL


def read_concept(source: str | PathLike[str]) -> Concept:
    """The word in a safetensors file, given as FILE or, to call it otherwise, as WORD=FILE.

    Logs a warning with the word if it is not the file's name. Raises WeightsError for a file that holds none.
    """
    word, file = parse_concept(str(source))
    path = Path(file)
    if word is not None and (len(word.split()) != 1 or not file):
        such = f", such as {as_word(word) or '<teddy>'}={file or 'teddy.safetensors'}"
        raise WeightsError(f"{source}: expected WORD=FILE with a word without spaces{such}")
    concept = concept_of(open_weights(path).tensors, path)
    if word is not None:
        return replace(concept, token=as_word(word))
    if concept.token != SMALL.normalize_str(path.stem):
        log.warning("%s: teaches the word %s; WORD=%s gives it another", path, concept.token, path)
    return concept


def is_concept(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file with these tensors holds a word, and nothing else."""
    wide = all(x.ndim in (1, 2) and x.shape[-1] >= NARROWEST for x in tensors.values())
    return wide and (set(tensors) == OF_XL or len(tensors) == 1 or are_words(tensors))


def concept_of(tensors: Mapping[str, Tensor], path: Path) -> Concept:
    """The word among the tensors of a file, as prompts are read: in small letters, hyphens for spaces.

    Raises WeightsError for what is no word, or holds NaN or infinite values.
    """
    if set(tensors) >= OF_XL:
        raise WeightsError(f"{path}: is for SDXL, with vectors for two text towers; expected one for SD 1.x or 2.x")
    (name, vectors), *others = tensors.items() if tensors else [("", Tensor())]
    if others or not tensors:
        what = "words" if are_words(tensors) else "tensors"
        names = ", ".join([name, *(other for other, _ in others)][:3]) or "none"
        raise WeightsError(
            f"{path}: expected one word, as (k, width) vectors; it holds {len(tensors)} {what} ({names})"
        )
    if vectors.ndim not in (1, 2) or not vectors.numel() or not vectors.is_floating_point():
        got = f"{str(vectors.dtype).removeprefix('torch.')} {tuple(vectors.shape)}"
        raise WeightsError(f"{path}: expected one word, as (k, width) vectors of floating point; {name} is {got}")
    vectors = vectors.float().reshape(-1, vectors.shape[-1])
    if not torch.isfinite(vectors).all():
        raise WeightsError(f"{path}: {name} holds NaN or infinite values; fetch or make the file again")
    token = as_word(path.stem if name in UNNAMED else name) or as_word(path.stem)
    return Concept(token, vectors, path)


def write_concept(
    concept: Concept,
    path: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a word, for diffusers and A1111's web UI alike; in fp32, or in `dtype`. Raises DiskError.

    In small letters: transformers, too, writes prompts so before it looks for words.
    """
    save_weights({as_word(concept.token): concept.vectors.detach().to(dtype or torch.float32)}, Path(path), metadata)
