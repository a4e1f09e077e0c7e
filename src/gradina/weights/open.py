"""A name, folder or file -> the components of its model, mapped."""

from __future__ import annotations

import logging
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch

from gradina.errors import WeightsError
from gradina.weights.components import Components
from gradina.weights.formats.diffusers import read_folder
from gradina.weights.formats.ldm import read_file
from gradina.weights.formats.vae import read_vae
from gradina.weights.registry import locate, locate_vae
from gradina.weights.safetensors import OpenWeights

log = logging.getLogger(__name__)


def open_source(
    source: str | PathLike[str] | None = None,
    variant: str | None = None,
    prediction: str | None = None,
    dtype: torch.dtype | None = None,
    vae: str | PathLike[str] | None = None,
    open_pickles: OpenWeights | None = None,
) -> Components:
    """The components of the model that `source` names (see `locate`), mapped from its files.

    `variant` ("fp16") selects among a folder's files, `prediction` (eps, v, x0) overrides what was detected, `dtype`
    converts, `vae` names another autoencoder than the model's own (see `locate_vae`), and `open_pickles` opens those
    of a folder, which are refused without it. Raises WeightsError.
    """
    fallback_vae = None if vae is None else locate_vae(vae)
    path = locate(source, variant, open_pickles is not None)
    on_disk = source is not None and Path(source).exists()
    name = None if on_disk else (path.name if source is None else str(source))
    if path.is_file():
        components = read_file(path, dtype, prediction, fallback_vae=fallback_vae)
    else:
        components = read_folder(path, variant, dtype, prediction, name, open_pickles, fallback_vae)
    if variant and path.is_file():
        log.warning("variant: %r has no effect on a single file; leave it out", variant)
    components = replace(components, source=str(source or path.name))
    return components if vae is None else with_vae(components, vae)


def with_vae(components: Components, source: str | PathLike[str]) -> Components:
    """A model with the autoencoder that `locate_vae` finds. Raises WeightsError, also for other latents, HubError."""
    own = components.vae.config
    other = read_vae(locate_vae(source), own, name=str(source))
    got, expected = ((c.latent_channels, c.channels, c.factor) for c in (other.vae.config, own))
    if got != expected:
        raise WeightsError(
            f"{source}: is an autoencoder for latents of {got[0]} channels, {got[2]} times smaller than pictures of "
            f"{got[1]}; those of this model have {expected[0]}, {expected[2]} times smaller than pictures of "
            f"{expected[1]}; take another"
        )
    if other.vae.config.scale != own.scale:
        log.warning(
            "%s: scales latents by %g, the model's own autoencoder by %g; it may be for another family",
            source, other.vae.config.scale, own.scale,
        )  # fmt: skip
    return replace(components, vae=other.vae, vae_source=str(source), vae_files=other.files)
