"""From one layout to the other: folder, single file, and the old pickle, which is read here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gradina.errors import WeightsError
from gradina.weights.components import Components
from gradina.weights.formats.ckpt import is_pickle, open_any, read_pickle, state_dict_of, unpickle
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import components_of, write_file
from gradina.weights.formats.lora import check_plain_lora, peft_metadata
from gradina.weights.formats.lora_names import is_lora
from gradina.weights.formats.taesd import is_taesd
from gradina.weights.formats.textual_inversion import embedding_of, is_embedding, pickled_embedding, write_embedding
from gradina.weights.formats.vae import is_vae_file, is_vae_folder, read_vae, write_vae, write_vae_folder
from gradina.weights.open import open_source
from gradina.weights.registry import locate
from gradina.weights.safetensors import Weights, save_weights

log = logging.getLogger(__name__)

PICKLES = (".ckpt", ".pt", ".pth", ".bin")

Convert = Callable[[Weights, Path, torch.dtype | None], None]


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    prediction: str | None = None,
) -> Path:
    """Writes `source` as `target`: one file if that ends in .safetensors, else a folder for diffusers; returns it.

    Exact to the bit unless `dtype` asks for another dtype; a contrastive pair goes along into a folder. Raises
    WeightsError for a source that cannot be read, DiskError for a target that cannot be written.
    """
    path, target = Path(source), Path(target)
    if target.suffix in PICKLES:
        raise WeightsError(f"{target}: pickles are not written; end the name in .safetensors, or name a folder")
    if path.is_dir() and is_vae_folder(path):
        _convert_vae(Weights(path, {}), target, dtype)
    elif not path.is_file() or not _convert_file(path, target, dtype):
        write = write_file if target.suffix == ".safetensors" else write_folder
        write(_read(source, variant, prediction), target, dtype)
    return target


def _read(source: str | Path, variant: str | None, prediction: str | None) -> Components:
    path = locate(source, variant, pickles=True)
    if path.is_file() and is_pickle(path):
        return components_of(read_pickle(path), prediction=prediction)
    return open_source(source, variant, prediction, open_pickles=open_any)


def _convert_file(path: Path, target: Path, dtype: torch.dtype | None) -> bool:
    """Converts a file that is no whole model, by the first row that fits; False for one that may be."""
    weights = _open(path)
    for what, matches, write, is_one_file in SINGLE_FILES:
        if matches(weights.tensors):
            if is_one_file and target.suffix != ".safetensors":
                raise WeightsError(f"{path}: {what} is one file; end the name in .safetensors, got {target}")
            write(weights, target, dtype)
            return True
    return False


def _open(path: Path) -> Weights:
    if not is_pickle(path):
        return open_any(path)
    content = unpickle(path)
    return Weights(path, pickled_embedding(path, content) or state_dict_of(path, content))


def _convert_embedding(weights: Weights, target: Path, dtype: torch.dtype | None) -> None:
    embedding = embedding_of(weights.tensors, weights.path)
    write_embedding(embedding, target, dtype=dtype)
    log.warning("%s: is the embedding of %s; write that in prompts, or give WORD=%s", target, embedding.token, target)


def _convert_lora(weights: Weights, target: Path, dtype: torch.dtype | None) -> None:
    check_plain_lora(weights.path, weights.tensors)
    _copy(weights, target, dtype)


def _copy(weights: Weights, target: Path, dtype: torch.dtype | None) -> None:
    tensors = {name: x.clone() for name, x in weights.tensors.items()}  # those of a pickle may share memory
    save_weights(tensors, target, {**weights.metadata, **peft_metadata(weights.path)}, dtype)


def _convert_vae(weights: Weights, target: Path, dtype: torch.dtype | None) -> None:
    write = write_vae if target.suffix == ".safetensors" else write_vae_folder
    write(read_vae(weights.path, open_pickles=open_any), target, dtype)


# What a file may hold instead of a whole model: its test, how it is converted, and whether only to one file.
SINGLE_FILES: tuple[tuple[str, Callable[[Mapping[str, Tensor]], bool], Convert, bool], ...] = (
    ("an embedding",   is_embedding, _convert_embedding, True),
    ("a LoRA",         is_lora,      _convert_lora,      True),
    ("a tiny decoder", is_taesd,     _copy,              True),
    ("an autoencoder", is_vae_file,  _convert_vae,       False),
)  # fmt: skip
