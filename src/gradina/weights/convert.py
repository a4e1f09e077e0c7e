"""From one layout to the other: folder, single file, and the old pickle, which is read here and nowhere else."""

from __future__ import annotations

from pathlib import Path

import torch

from gradina.errors import WeightsError
from gradina.weights.addons import convert_addon
from gradina.weights.components import Components
from gradina.weights.formats.ckpt import is_pickle, open_any, read_pickle
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import parts_of, write_file
from gradina.weights.formats.vae import Alone, is_vae, is_vae_alone, read_vae, write_vae, write_vae_folder
from gradina.weights.open import open_source
from gradina.weights.registry import locate

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    prediction: str | None = None,
) -> Path:
    """Writes the model `source` as `target`: one file if that ends in .safetensors, else a folder for diffusers.

    A learnt word, a LoRA or a tiny decoder becomes one file. Round trips are exact to the bit, unless `dtype` asks for
    another dtype; a contrastive pair that goes with the model is written beside it in a folder, and one file has no
    room for it. Returns the target; raises WeightsError for a source that cannot be read, DiskError for a target that
    cannot be written.
    """
    target = Path(target)
    if target.suffix in PICKLES:
        raise WeightsError(f"{target}: pickles are not written; end the name in .safetensors, or name a folder")
    if Path(source).is_file() and convert_addon(Path(source), target, dtype):
        return target
    autoencoder = _autoencoder(source)
    if autoencoder is not None:
        (write_vae if target.suffix == ".safetensors" else write_vae_folder)(autoencoder, target, dtype)
        return target
    parts = _read(source, variant, prediction)
    write = write_file if target.suffix == ".safetensors" else write_folder
    write(parts, target, dtype)
    return target


def _autoencoder(source: str | Path) -> Alone | None:
    """The autoencoder that a file or folder holds and nothing else; None for any other."""
    path = Path(source)
    alone = is_vae(path) if path.is_dir() else path.is_file() and is_vae_alone(open_any(path).tensors)
    return read_vae(path, pickles=open_any) if alone else None


def _read(source: str | Path, variant: str | None, prediction: str | None) -> Components:
    path = locate(source, variant, pickles=True)
    if path.is_file() and is_pickle(path):
        return parts_of(read_pickle(path), prediction=prediction)
    return open_source(source, variant, prediction, pickles=open_any)
