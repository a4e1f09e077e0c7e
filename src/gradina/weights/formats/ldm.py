"""The original layout: one file with U-Net, autoencoder and text tower, as Stable Diffusion was first published.

What shapes cannot tell (heads, groups, schedule, defaults, another vocabulary than CLIP's) stands in the metadata of
the files that are written here.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gradina.diffusion.schedule import sd_schedule
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights import detect
from gradina.weights.build import build, export
from gradina.weights.components import Components, checked_components, resolve_prediction
from gradina.weights.formats.diffusers_configs import schedule_to_config
from gradina.weights.formats.ldm_config import (
    IN_METADATA,
    METADATA,
    Configs,
    configs_from_shapes,
    guess_prediction,
    read_metadata,
    stated_prediction,
    with_metadata,
)
from gradina.weights.formats.vae import build_vae, read_vae
from gradina.weights.json_config import config_errors
from gradina.weights.key_tables import DROPPED, TEXT, UNET, VAE, add_text_model, unet_indices, vae_indices
from gradina.weights.remap import unclaimed
from gradina.weights.safetensors import Weights, open_weights, save_weights, strip_wrappers

log = logging.getLogger(__name__)


def read_file(
    path: str | Path,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    name: str | None = None,
    fallback_vae: Path | None = None,
) -> Components:
    """An original single-file checkpoint of Stable Diffusion 1.x or 2.x; mapped, and detected by its tensors.

    `prediction` (eps, v, x0) overrides what is detected; `fallback_vae` is read where the file has no autoencoder.
    Warns with PredictionWarning where the prediction is a guess; raises WeightsError for a file that is truncated, of
    another family, or lacking parameters.
    """
    weights = open_weights(path)
    if fallback_vae is not None and not weights.under(detect.VAE):
        vae = read_vae(fallback_vae).vae
        added = export(vae, VAE, "original", vae_indices(vae.config), detect.VAE)
        weights = replace(weights, tensors={**weights.tensors, **added})
    return components_of(weights, dtype, prediction, name)


def components_of(
    weights: Weights, dtype: torch.dtype | None = None, prediction: str | None = None, name: str | None = None
) -> Components:
    """The components of an original checkpoint whose tensors are open; see `read_file`."""
    weights = replace(weights, tensors=strip_wrappers(weights.tensors))
    path, configs = weights.path, configs_from_shapes(weights)

    metadata = read_metadata(weights)
    known = {name: with_metadata(getattr(configs, name), name, metadata, weights) for name in IN_METADATA}
    configs = replace(configs, **known)

    stated = metadata.prediction or stated_prediction(weights)
    if prediction or stated:
        prediction = resolve_prediction(path, prediction, stated)
    else:
        prediction = guess_prediction(weights, configs)
    if configs.unet.linear and configs.unet.context == 1024 and prediction == "v" and not metadata.unet:
        configs = replace(configs, unet=replace(configs.unet, size=96))  # SD 2 with v: 768 pixels, all others 512

    unet, vae, text = _networks(weights, configs, dtype)
    _warn_of_unused(weights, configs)
    side = configs.unet.size * configs.vae.factor
    components = Components(
        unet=unet,
        vae=vae,
        text=text,
        tokenizer=_tokenizer(weights, metadata.tokenizer, configs),
        schedule=metadata.schedule or sd_schedule(rescale_betas_zero_snr="ztsnr" in weights.tensors),
        prediction=prediction,
        defaults=metadata.defaults or Defaults(width=side, height=side),
        name=name or path.stem,
        files=(path,),
    )
    return checked_components(components, path)


def write_file(components: Components, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the original layout as one safetensors file, whole or not at all, without projection. Raises DiskError."""
    unet, vae, text = components.unet, components.vae, components.text
    text_format = next(row for row in detect.TEXT_ENCODERS if row.activation == text.config.activation)
    tensors = {
        **export(unet, UNET, "original", unet_indices(unet.config), detect.UNET),
        **export(vae, VAE, "original", vae_indices(vae.config), detect.VAE),
        **export(text, TEXT, text_format.dialect, prefix=text_format.prefix),
    }
    save_weights(tensors, path, _metadata(components), dtype)


def _networks(weights: Weights, configs: Configs, dtype: torch.dtype | None) -> tuple[UNet, AutoencoderKL, TextTower]:
    prefix = configs.text_format.prefix
    unet, vae, text = (replace(weights, tensors=weights.under(each)) for each in (detect.UNET, detect.VAE, prefix))
    text = replace(text, tensors=add_text_model(text.tensors))
    unused = f"transformer.resblocks.{configs.text.layers}.*"  # the last layer of a complete OpenCLIP tower
    what = f"{{}} of an original {configs.family} checkpoint, under {{}}"
    return (
        build(UNet, configs.unet, unet, UNET, "original", unet_indices(configs.unet),
              dropped=DROPPED["unet"], what=what.format("UNet", detect.UNET), dtype=dtype),
        build_vae(vae, configs.vae, "original", what.format("AutoencoderKL", detect.VAE), dtype),
        build(TextTower, configs.text, text, TEXT, configs.text_format.dialect,
              dropped=[*DROPPED["text"], unused], what=what.format("TextTower", prefix), dtype=dtype),
    )  # fmt: skip


def _warn_of_unused(weights: Weights, configs: Configs) -> None:
    """Tensors outside of the three networks change no picture."""
    prefixes = (detect.UNET, detect.VAE, configs.text_format.prefix)
    outside = [name for name in weights.tensors if not name.startswith(prefixes)]
    if unused := unclaimed(outside, {}, DROPPED["outside"]):
        log.warning("%s: %d tensors belong to no network and are ignored (first: %s)",
                    weights.path, len(unused), unused[0])  # fmt: skip


def _tokenizer(weights: Weights, metadata: Mapping[str, Any] | None, configs: Configs) -> Tokenizer:
    vocabulary = configs.text.vocabulary
    if metadata is None and vocabulary < 49408:
        raise WeightsError(
            f"{weights.path}: the text tower has {vocabulary} tokens, not CLIP's 49408, and the file does not say "
            "which; take the model as a folder"
        )
    if metadata is None:
        return Tokenizer.clip(length=configs.text.length, pad=configs.text_format.pad)
    with config_errors(weights.path), tempfile.TemporaryDirectory() as folder:
        if "files" not in metadata:
            return Tokenizer.clip(length=metadata["length"], pad=metadata["pad"])
        for file, text in metadata["files"].items():
            (Path(folder) / Path(file).name).write_text(text, encoding="utf-8", newline="\n")
        return Tokenizer.load(folder)


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {p.name: p.read_text(encoding="utf-8") for p in sorted(Path(folder).iterdir())}


@cache
def _clip_files(length: int, pad: int) -> dict[str, str]:
    return _tokenizer_files(Tokenizer.clip(length, pad))


def _metadata(components: Components) -> dict[str, str]:
    """What shapes cannot tell, and the fields of ModelSpec that other programs read."""
    tokenizer, defaults = components.tokenizer, components.defaults
    files, pad, length = _tokenizer_files(tokenizer), tokenizer.pad, tokenizer.length
    is_clip = len(tokenizer) == 49408 and files == _clip_files(length, pad)
    configs = {name: getattr(components, name).config for name in IN_METADATA}
    ours = {
        **{name: {key: getattr(configs[name], key) for key in keys} for name, keys in IN_METADATA.items()},
        "scheduler": schedule_to_config(components.schedule, components.prediction),
        "defaults": asdict(defaults),
        "tokenizer": {"length": length, "pad": pad} if is_clip else {"files": files},
    }
    generation = "v2" if components.text.config.activation == "gelu" else "v1"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{generation}",
        "modelspec.implementation": "https://github.com/Stability-AI/stablediffusion",
        "modelspec.title": components.name,
        "modelspec.prediction_type": {"eps": "epsilon"}.get(components.prediction, components.prediction),
        "modelspec.resolution": f"{defaults.width}x{defaults.height}",
        METADATA: json.dumps(ours, sort_keys=True),
    }
