"""An autoencoder by itself, in whatever form it was published: in place of a model's own, or to be converted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gradina.errors import WeightsError
from gradina.files import atomic_folder
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.weights import detect
from gradina.weights.formats import diffusers_configs
from gradina.weights.formats.ldm_metadata import Said, as_said, said_by
from gradina.weights.formats.unsupported import foreign, named_as
from gradina.weights.json_config import read_json, read_settings
from gradina.weights.key_tables import DROPPED, VAE, vae_numbers, with_attention_of
from gradina.weights.remap import sources, unclaimed, write
from gradina.weights.safetensors import Weights, build, open_weights, save_weights, unwrapped
from gradina.weights.variants import STEMS, Opener, choose

log = logging.getLogger(__name__)

CONFIG, PREFIXES = "config.json", ("first_stage_model.", "vae.", "")


@dataclass(frozen=True)
class Alone:
    """An autoencoder, the files that it came from, and whether they say its scale, which no shape tells."""

    vae: AutoencoderKL
    files: tuple[Path, ...]
    scaled: bool


def build_vae(
    weights: Weights, config: VAEConfig, layout: str, dialect: str, dtype: torch.dtype | None = None
) -> AutoencoderKL:
    """An autoencoder of names of the layout ("original", "diffusers") without a prefix, in any of their spellings."""
    weights = replace(weights, tensors=with_attention_of(layout, weights.tensors))
    numbers = vae_numbers(config) if layout == "original" else None
    where = partial(sources, table=VAE, dialect=layout, numbers=numbers)
    return build(AutoencoderKL, config, weights, where, dropped=DROPPED["vae"], dialect=dialect, dtype=dtype)


def read_vae(path: Path, like: VAEConfig | None = None, pickles: Opener | None = None, name: str = "") -> Alone:
    """The autoencoder in a file or folder, mapped: alone in either layout, or that of a whole model.

    `like` gives what a file does not say; `pickles` opens those, which are refused without it. Raises WeightsError.
    """
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / CONFIG).is_file() else path
        weights = (pickles or open_weights)(
            choose({"vae": folder}, None, pickles is not None, name or str(path))["vae"]
        )
        return _configured(weights, folder / CONFIG, like)
    weights = (pickles or open_weights)(path)
    weights = replace(weights, tensors=unwrapped(weights.tensors))
    prefix = _prefix(weights.tensors)
    if prefix is None:
        what = (
            named_as(weights.tensors)
            or f"of an unknown kind (first of its tensors: {next(iter(weights.tensors), 'none')})"
        )
        raise WeightsError(f"{path}: is {what}; expected an autoencoder (VAE), or a whole checkpoint that has one")
    if prefix != "" and (what := foreign(weights.tensors)):
        raise WeightsError(f"{path}: is {what}, whose autoencoder is for other latents; expected one of SD 1.x or 2.x")
    layout = next(layout for layout, block in detect.VAE_BLOCKS.items() if _first(prefix, block) in weights.tensors)
    weights = replace(weights, tensors=weights.under(prefix))
    if layout == "diffusers" and _is_config(path.parent / CONFIG):
        return _configured(weights, path.parent / CONFIG, like)
    return _detected(weights, layout, like)


def is_vae(folder: Path) -> bool:
    """Whether a folder is an autoencoder of diffusers alone."""
    return _is_config(folder / CONFIG)


def is_vae_alone(names: Iterable[str]) -> bool:
    """Whether a file with those names holds an autoencoder, and nothing of a model beside it."""
    names = list(unwrapped(dict.fromkeys(names)))
    prefix = _prefix(names)
    return prefix is not None and not unclaimed((n for n in names if not n.startswith(prefix)), {}, DROPPED["outside"])


def in_original_layout(vae: AutoencoderKL, prefix: str = "") -> dict[str, Tensor]:
    """An autoencoder's weights by the names of the original layout, each behind a prefix."""
    ours = vae.state_dict()
    return write(ours, sources(ours, VAE, "original", vae_numbers(vae.config), prefix))


def write_vae(alone: Alone, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes an autoencoder as one safetensors file in the original layout, whole or not at all. Raises DiskError."""
    config, tensors = alone.vae.config, in_original_layout(alone.vae)
    said = {"groups": config.groups, **({"scale": config.scale} if alone.scaled else {})}
    metadata = {"gradina": json.dumps({"vae": said}, sort_keys=True)}
    save_weights(_in(dtype, tensors), path, metadata)


def write_vae_folder(alone: Alone, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes an autoencoder as a folder for diffusers, whole or not at all. Raises DiskError."""
    config, ours = alone.vae.config, alone.vae.state_dict()
    tensors = write(ours, sources(ours, VAE, "diffusers"))
    with atomic_folder(path) as folder:
        said = diffusers_configs.vae_to(config, 64 * config.factor)
        said = said if alone.scaled else {name: value for name, value in said.items() if name != "scaling_factor"}
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8", newline="\n")
        save_weights(_in(dtype, tensors), folder / f"{STEMS['vae']}.safetensors")


def _in(dtype: torch.dtype | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x if dtype is None else x.to(dtype) for name, x in tensors.items()}


def _prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of an autoencoder; None where there is none."""
    names = set(names)
    return next((p for p in PREFIXES for block in detect.VAE_BLOCKS.values() if _first(p, block) in names), None)


def _first(prefix: str, block: str) -> str:
    return prefix + block.format(0, 0)


def _is_config(path: Path) -> bool:
    return path.is_file() and read_json(path).get("_class_name") == "AutoencoderKL"


def _configured(weights: Weights, path: Path, like: VAEConfig | None) -> Alone:
    """An autoencoder in the names of diffusers, with its config."""
    said = read_json(path)
    if (kind := said.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise WeightsError(f"{path}: is of a {kind}; expected an AutoencoderKL")
    config, scaled = read_settings(path, diffusers_configs.vae_from), bool(said.get("scaling_factor"))
    if like is not None and not scaled:
        config = replace(config, scale=like.scale)
    return Alone(build_vae(weights, config, "diffusers", "autoencoder in the diffusers layout"), weights.files, scaled)


def _detected(weights: Weights, layout: str, like: VAEConfig | None) -> Alone:
    """An autoencoder by its shapes, and what a file of ours says of it."""
    try:
        config = detect.vae_of({name: tuple(x.shape) for name, x in weights.tensors.items()}, layout)
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{weights.path}: is an autoencoder that lacks {error.args[0]}; fetch it again") from error
    said: Said = said_by(weights)
    if like is not None:
        config = replace(
            config, scale=like.scale, groups=like.groups if config.widths == like.widths else config.groups
        )
    config = as_said(config, "vae", said, weights)
    return Alone(
        build_vae(weights, config, layout, f"autoencoder in the {layout} layout"), weights.files, "scale" in said.vae
    )
