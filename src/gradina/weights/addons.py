"""What goes with a model and is none: a word, a LoRA, a tiny decoder; whatever it lies in, it becomes safetensors."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from gradina.errors import WeightsError
from gradina.weights.formats.ckpt import content_of, is_pickle, open_any, tensors_of, vectors_of
from gradina.weights.formats.lora import refuse_other_kinds, settings_beside
from gradina.weights.formats.lora_names import is_lora
from gradina.weights.formats.taesd import is_tiny
from gradina.weights.formats.textual_inversion import concept_of, is_concept, write_concept
from gradina.weights.safetensors import Weights, save_weights

log = logging.getLogger(__name__)


def convert_addon(source: Path, target: Path, dtype: torch.dtype | None = None) -> bool:
    """Writes the word, LoRA or tiny decoder in the file `source` as `target`; False: it holds none of them.

    Logs a warning with the word by which a word is called. Raises WeightsError, DiskError.
    """
    weights, vectors = _opened(source)
    if vectors is not None:
        _check(source, target, "a learnt word")
        concept = concept_of(vectors, source)
        write_concept(concept, target, dtype=dtype)
        log.warning("%s: teaches the word %s; write it in prompts, or give WORD=%s", target, concept.token, target)
        return True
    if is_lora(weights.tensors):
        _check(source, target, "a LoRA")
        refuse_other_kinds(source, weights.tensors)
    elif is_tiny(weights.tensors):
        _check(source, target, "a tiny decoder")
    else:
        return False
    tensors = {name: _stored(x, dtype) for name, x in weights.tensors.items()}
    save_weights(tensors, target, {**weights.metadata, **settings_beside(source)})
    return True


def _opened(path: Path) -> tuple[Weights, dict[str, Tensor] | None]:
    """The tensors of a file by name, and the vectors of the word in it, if it is one."""
    if is_pickle(path):
        content = content_of(path)
        vectors = vectors_of(path, content)
        return Weights(path, {} if vectors else tensors_of(path, content)), vectors
    weights = open_any(path)
    return weights, dict(weights.tensors) if is_concept(weights.tensors) else None


def _stored(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """In its own memory, which a pickle's tensors may share."""
    return x.to(dtype, copy=True) if dtype is not None and x.is_floating_point() else x.clone()


def _check(source: Path, target: Path, what: str) -> None:
    if target.suffix != ".safetensors":
        raise WeightsError(f"{source}: {what} is one file; end the name in .safetensors, got {target}")
