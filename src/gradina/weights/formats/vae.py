"""An autoencoder by itself, in whatever form it was published: in place of a model's own, or to be converted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gradina.errors import WeightsError
from gradina.files import atomic_folder, read_json, write_json
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.weights.build import build, export
from gradina.weights.detect import find_format, find_vae
from gradina.weights.formats import diffusers_configs
from gradina.weights.formats.diffusers_layout import STEMS, select_weights
from gradina.weights.formats.ldm_config import METADATA, read_metadata, shapes_of, vae_from_shapes, with_metadata
from gradina.weights.json_config import read_config
from gradina.weights.key_tables import DROPPED, VAE, rename_vae_attention, vae_indices
from gradina.weights.remap import unclaimed
from gradina.weights.safetensors import OpenWeights, Weights, open_weights, save_weights, strip_wrappers

log = logging.getLogger(__name__)

CONFIG = "config.json"


@dataclass(frozen=True)
class SingleVAE:
    """An autoencoder, the files that it was read from, and whether they give its scale, which no shape tells."""

    vae: AutoencoderKL
    files: tuple[Path, ...]
    has_scale: bool


def build_vae(
    weights: Weights, config: VAEConfig, dialect: str, what: str = "", dtype: torch.dtype | None = None
) -> AutoencoderKL:
    """An autoencoder with the names of a dialect ("original", "diffusers"), without prefix, in any spelling of them."""
    weights = replace(weights, tensors=rename_vae_attention(dialect, weights.tensors))
    indices = vae_indices(config) if dialect == "original" else None
    what = what or f"autoencoder in the {dialect} layout"
    return build(AutoencoderKL, config, weights, VAE, dialect, indices, dropped=DROPPED["vae"], what=what, dtype=dtype)


def read_vae(
    path: Path, like: VAEConfig | None = None, open_pickles: OpenWeights | None = None, name: str = ""
) -> SingleVAE:
    """The autoencoder in a file or folder, mapped; `like` gives what that does not say. Raises WeightsError."""
    opened = open_pickles or open_weights
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / CONFIG).is_file() else path
        file = select_weights({"vae": folder}, None, open_pickles is not None, name or str(path))["vae"]
        return _read_configured(opened(file), folder / CONFIG, like)
    weights = opened(path)
    weights = replace(weights, tensors=strip_wrappers(weights.tensors))
    found = find_vae(weights.tensors)
    if found is None:
        row, first = find_format(weights.tensors), next(iter(weights.tensors), "none")
        what = row.what if row else f"of an unknown kind (first of its tensors: {first})"
        raise WeightsError(f"{path}: is {what}; expected an autoencoder (VAE), or a whole checkpoint that has one")
    prefix, dialect = found
    if prefix and (family := find_format(weights.tensors, ("other",))):
        raise WeightsError(
            f"{path}: is {family.what}, whose autoencoder is for other latents; expected one of SD 1.x or 2.x"
        )
    weights = replace(weights, tensors=weights.under(prefix))
    if dialect == "diffusers" and is_vae_folder(path.parent):
        return _read_configured(weights, path.parent / CONFIG, like)
    return _read_detected(weights, dialect, like)


def _read_configured(weights: Weights, path: Path, like: VAEConfig | None) -> SingleVAE:
    """An autoencoder in the diffusers layout, by its config."""
    content = read_json(path)
    if (kind := content.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise WeightsError(f"{path}: is the config of {kind}; expected AutoencoderKL")
    config, has_scale = read_config(path, diffusers_configs.vae_from_json), bool(content.get("scaling_factor"))
    if like is not None and not has_scale:
        config = replace(config, scale=like.scale)
    return SingleVAE(build_vae(weights, config, "diffusers"), weights.files, has_scale)


def _read_detected(weights: Weights, dialect: str, like: VAEConfig | None) -> SingleVAE:
    """An autoencoder by its shapes, and by the metadata of files that were written here."""
    try:
        config = vae_from_shapes(shapes_of(weights.tensors), dialect)
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{weights.path}: is an autoencoder that lacks {error.args[0]}; fetch it again") from error
    metadata = read_metadata(weights)
    if like is not None:
        groups = like.groups if config.widths == like.widths else config.groups
        config = replace(config, scale=like.scale, groups=groups)
    config = with_metadata(config, "vae", metadata, weights)
    return SingleVAE(build_vae(weights, config, dialect), weights.files, "scale" in metadata.vae)


def is_vae_folder(folder: Path) -> bool:
    """Whether a folder is an autoencoder of diffusers alone."""
    config = folder / CONFIG
    return config.is_file() and read_json(config).get("_class_name") == "AutoencoderKL"


def is_vae_file(names: Iterable[str]) -> bool:
    """Whether a file with these names holds an autoencoder and no other network."""
    names = list(strip_wrappers(dict.fromkeys(names)))
    found = find_vae(names)
    return found is not None and not unclaimed((n for n in names if not n.startswith(found[0])), {}, DROPPED["outside"])


def write_vae(single: SingleVAE, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes an autoencoder as one safetensors file in the original layout, whole or not at all. Raises DiskError."""
    config = single.vae.config
    tensors = export(single.vae, VAE, "original", vae_indices(config))
    known = {"groups": config.groups, **({"scale": config.scale} if single.has_scale else {})}
    save_weights(tensors, path, {METADATA: json.dumps({"vae": known}, sort_keys=True)}, dtype)


def write_vae_folder(single: SingleVAE, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes an autoencoder as a folder for diffusers, whole or not at all. Raises DiskError."""
    content = diffusers_configs.vae_to_json(single.vae.config, 64 * single.vae.config.factor)
    if not single.has_scale:
        del content["scaling_factor"]
    with atomic_folder(path) as folder:
        write_json(folder / CONFIG, content)
        save_weights(export(single.vae, VAE, "diffusers"), folder / f"{STEMS['vae']}.safetensors", dtype=dtype)
