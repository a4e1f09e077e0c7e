"""Tiny decoders, as diffusers keeps them (AutoencoderTiny) and as their author does (taesd_decoder.safetensors)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from os import PathLike
from pathlib import Path

from gradina.errors import WeightsError
from gradina.models.taesd import TinyConfig, TinyDecoder
from gradina.models.vae import VAEConfig
from gradina.weights.key_tables import TINY, tiny_numbers
from gradina.weights.registry import locate_tiny
from gradina.weights.remap import sources
from gradina.weights.safetensors import Weights, build, find_weights, open_weights

STEM, LAYERS = "diffusion_pytorch_model", "decoder.layers."
FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2, "scaling_factor": 1.0,
         "shift_factor": 0.0, "latent_magnitude": 3}  # fmt: skip
EXPECTED = "expected an AutoencoderTiny's folder, or taesd_decoder.safetensors"


def read_tiny(source: str | PathLike[str], vae: VAEConfig) -> TinyDecoder:
    """The tiny decoder of a name (see `locate_tiny`), for the latents of an autoencoder; its weights are mapped.

    Raises WeightsError, also where it is for other latents, or HubError where the hub does not give it.
    """
    path = locate_tiny(source)
    if path.is_dir():
        _check(path / "config.json")
        path = find_weights(path, STEM)
    weights = open_weights(path)
    dialect, first = ("diffusers", 0) if f"{LAYERS}0.weight" in weights.tensors else ("original", 1)
    config = _config(weights, LAYERS if dialect == "diffusers" else "", first)
    got, expected = ((c.latent_channels, c.factor) for c in (config, vae))
    if got != expected:
        raise WeightsError(
            f"{source}: is for latents of {got[0]} channels that are {got[1]} times smaller than pictures, those of "
            f"this model have {expected[0]} and are {expected[1]} times smaller; take another"
        )
    where = partial(sources, table=TINY, dialect=dialect, numbers=tiny_numbers(config, first))
    return build(TinyDecoder, config, weights, where, dropped=("encoder.*",), dialect="tiny decoder")


def is_tiny(names: Iterable[str]) -> bool:
    """Whether a file with these names holds a tiny decoder, or the encoder to one."""
    names = list(names)
    return any(_blocks(names, prefix) for prefix in ("", LAYERS, LAYERS.replace("de", "en")))


def _config(weights: Weights, prefix: str, first: int) -> TinyConfig:
    """Read off the names and shapes: blocks stand in runs, with two layers between one run and the next."""
    start = weights.tensors.get(f"{prefix}{first}.weight")
    numbers = _blocks(weights.tensors, prefix)
    if start is None or start.ndim != 4 or not numbers:
        raise WeightsError(f"{weights.path}: is no tiny decoder; {EXPECTED}")
    runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda at: at[1] - at[0])]
    return TinyConfig(width=start.shape[0], latent_channels=start.shape[1], blocks=tuple(len(run) for run in runs))


def _blocks(names: Iterable[str], prefix: str) -> list[int]:
    found = (re.fullmatch(re.escape(prefix) + r"(\d+)\.conv\.0\.weight", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _check(path: Path) -> None:
    """Refuses what our decoder does not do."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        odd = {key: settings[key] for key, usual in FIXED.items() if settings.get(key, usual) != usual}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: is not as an AutoencoderTiny has it ({error!r}); {EXPECTED}") from error
    if settings.get("_class_name", "AutoencoderTiny") != "AutoencoderTiny":
        raise WeightsError(f"{path}: is of {settings['_class_name']}; {EXPECTED}")
    if odd:
        raise WeightsError(f"{path}: has {odd}, expected { ({key: FIXED[key] for key in odd}) }")
