"""Tiny decoders, as diffusers keeps them (AutoencoderTiny) and as their author does (taesd_decoder.safetensors)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from os import PathLike

from gradina.errors import WeightsError
from gradina.models.taesd import TinyConfig, TinyDecoder
from gradina.models.vae import VAEConfig
from gradina.weights.build import build
from gradina.weights.formats.diffusers_layout import STEMS, find_weights
from gradina.weights.json_config import Json, read_config
from gradina.weights.key_tables import TAESD, taesd_indices
from gradina.weights.registry import locate_taesd
from gradina.weights.safetensors import Weights, open_weights

LAYERS = "decoder.layers."
FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2, "scaling_factor": 1.0,
         "shift_factor": 0.0, "latent_magnitude": 3}  # fmt: skip
EXPECTED = "expected an AutoencoderTiny's folder, or taesd_decoder.safetensors"


def read_taesd(source: str | PathLike[str], vae: VAEConfig) -> TinyDecoder:
    """The tiny decoder that `locate_taesd` finds, for an autoencoder's latents. Raises WeightsError, HubError."""
    path = locate_taesd(source)
    if path.is_dir():
        read_config(path / "config.json", _check)
        path = find_weights(path, STEMS["vae"])
    weights = open_weights(path)
    dialect, first = ("diffusers", 0) if f"{LAYERS}0.weight" in weights.tensors else ("original", 1)
    config = _config_from_names(weights, LAYERS if dialect == "diffusers" else "", first)
    got, expected = ((c.latent_channels, c.factor) for c in (config, vae))
    if got != expected:
        raise WeightsError(
            f"{source}: is for latents of {got[0]} channels that are {got[1]} times smaller than pictures, those of "
            f"this model have {expected[0]} and are {expected[1]} times smaller; take another"
        )
    indices = taesd_indices(config, first)
    return build(TinyDecoder, config, weights, TAESD, dialect, indices, dropped=("encoder.*",), what="tiny decoder")


def is_taesd(names: Iterable[str]) -> bool:
    """Whether a file with these names holds a tiny decoder, or its encoder."""
    names = list(names)
    return any(_blocks(names, prefix) for prefix in ("", LAYERS, LAYERS.replace("de", "en")))


def _config_from_names(weights: Weights, prefix: str, first: int) -> TinyConfig:
    """The blocks of a stage are numbered in a row, with two other layers between one stage and the next."""
    start = weights.tensors.get(f"{prefix}{first}.weight")
    blocks = _blocks(weights.tensors, prefix)
    if start is None or start.ndim != 4 or not blocks:
        raise WeightsError(f"{weights.path}: is no tiny decoder; {EXPECTED}")
    stages = [len(list(run)) for _, run in groupby(enumerate(blocks), key=lambda at: at[1] - at[0])]
    return TinyConfig(width=start.shape[0], latent_channels=start.shape[1], blocks=tuple(stages))


def _blocks(names: Iterable[str], prefix: str) -> list[int]:
    found = (re.fullmatch(re.escape(prefix) + r"(\d+)\.conv\.0\.weight", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _check(json: Json) -> None:
    """Raises WeightsError for the config of another network, or one with settings that are not supported."""
    if (kind := json.get("_class_name", "AutoencoderTiny")) != "AutoencoderTiny":
        raise WeightsError(f"is the config of {kind}; {EXPECTED}")
    unsupported = {key: json[key] for key, value in FIXED.items() if json.get(key, value) != value}
    if unsupported:
        raise WeightsError(f"has {unsupported}, expected { ({key: FIXED[key] for key in unsupported}) }")
