"""The diffusers layout: a folder with a sub-folder for each component, read and written as diffusers does."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gradina.errors import WeightsError
from gradina.files import atomic_folder, read_json, write_json
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights.build import build, export
from gradina.weights.components import Components, checked_components, resolve_prediction
from gradina.weights.detect import TEXT_ENCODERS, check_unet_inputs
from gradina.weights.formats import diffusers_configs
from gradina.weights.formats.clip import copy_pair
from gradina.weights.formats.diffusers_layout import (
    CARD,
    INDEX,
    PAIR,
    SETTINGS,
    STEMS,
    is_model_folder,
    select_weights,
    unread_components,
    unsupported_reason,
    weight_files,
)
from gradina.weights.formats.vae import build_vae, read_vae
from gradina.weights.json_config import read_config
from gradina.weights.key_tables import DROPPED, TEXT, UNET, VAE, add_text_model
from gradina.weights.model_card import model_card, with_dtype
from gradina.weights.safetensors import OpenWeights, Weights, open_weights, save_weights

log = logging.getLogger(__name__)


def read_folder(
    path: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    name: str | None = None,
    open_pickles: OpenWeights | None = None,
    fallback_vae: Path | None = None,
) -> Components:
    """A folder of the diffusers layout; weights are mapped, and converted only where `dtype` asks for it.

    `variant` ("fp16") selects among files, `prediction` (eps, v, x0) overrides the scheduler's config, .bin files are
    refused without `open_pickles`; `fallback_vae` is read where the folder has no autoencoder. Raises WeightsError.
    """
    folder = Path(path)
    _check_family(folder)
    has_vae = fallback_vae is None or bool(weight_files(folder / "vae", STEMS["vae"], open_pickles is not None))
    folders = {network: folder / network for network in STEMS if has_vae or network != "vae"}
    selected = select_weights(folders, variant, open_pickles is not None, name or str(folder))
    opened = {network: (open_pickles or open_weights)(file) for network, file in selected.items()}
    unet, text = _unet(folder, opened["unet"], dtype), _text(folder, opened["text_encoder"], dtype)
    vae = read_vae(fallback_vae).vae if fallback_vae and not has_vae else _vae(folder, opened["vae"], dtype)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    schedule, stated = read_config(scheduler, diffusers_configs.schedule_and_prediction)
    card = folder / CARD
    components = Components(
        unet=unet,
        vae=vae,
        text=text,
        tokenizer=_tokenizer(folder, text),
        schedule=schedule,
        prediction=resolve_prediction(folder, prediction, stated),
        defaults=_defaults(folder, unet.config.size * vae.config.factor),
        name=name or folder.resolve().name,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
        files=tuple(file for n in ("text_encoder", "unet", "vae") if n in opened for file in opened[n].files),
        clip=folder / PAIR if (folder / PAIR / "config.json").is_file() else None,
    )
    return checked_components(components, folder)


def write_folder(components: Components, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the diffusers layout, whole or not at all. Raises DiskError, WeightsError for a pair that is gone."""
    has_card = bool(components.card)
    card = with_dtype(components.card, components, dtype) if has_card else model_card(components, dtype)
    unet, vae, text = components.unet.config, components.vae.config, components.text.config
    scheduler = diffusers_configs.schedule_to_config(components.schedule, components.prediction)
    with atomic_folder(path) as folder:
        for name, network, table, dialect, config in (
            ("unet", components.unet, UNET, "diffusers", diffusers_configs.unet_to_json(unet)),
            ("vae", components.vae, VAE, "diffusers", diffusers_configs.vae_to_json(vae, unet.size * vae.factor)),
            ("text_encoder", components.text, TEXT, "transformers", diffusers_configs.text_to_json(text)),
        ):
            write_json(folder / name / "config.json", config)
            tensors = export(network, table, dialect)
            save_weights(tensors, folder / name / f"{STEMS[name]}.safetensors", dtype=dtype)
        components.tokenizer.save(folder / "tokenizer")
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        if components.clip is not None:
            copy_pair(components.clip, folder / PAIR, dtype)
        write_json(folder / INDEX, _model_index(unet))
        write_json(folder / SETTINGS, {"defaults": asdict(components.defaults)})
        (folder / CARD).write_text(card, encoding="utf-8")


def _unet(folder: Path, weights: Weights, dtype: torch.dtype | None) -> UNet:
    timed = "time_embedding.linear_1.weight" in weights.tensors
    config = read_config(folder / "unet" / "config.json", lambda json: diffusers_configs.unet_from_json(json, timed))
    check_unet_inputs(folder, config.channels, config.out_channels)
    what = "U-Net in the diffusers layout"
    return build(UNet, config, weights, UNET, "diffusers", dropped=DROPPED["unet"], what=what, dtype=dtype)


def _vae(folder: Path, weights: Weights, dtype: torch.dtype | None) -> AutoencoderKL:
    config = read_config(folder / "vae" / "config.json", diffusers_configs.vae_from_json)
    return build_vae(weights, config, "diffusers", dtype=dtype)


def _text(folder: Path, weights: Weights, dtype: torch.dtype | None) -> TextTower:
    projection = weights.tensors.get("text_projection.weight")
    width = None if projection is None else projection.shape[0]
    path = folder / "text_encoder" / "config.json"
    config = read_config(path, lambda json: diffusers_configs.text_from_json(json, width))
    weights = replace(weights, tensors=add_text_model(weights.tensors))
    what = "text tower in the transformers layout"
    return build(TextTower, config, weights, TEXT, "transformers", dropped=DROPPED["text"], what=what, dtype=dtype)


def _tokenizer(folder: Path, text: TextTower) -> Tokenizer:
    """The folder's own, or CLIP's where it has none, with the padding of single files of its family."""
    if (folder / "tokenizer").is_dir():
        return Tokenizer.load(folder / "tokenizer")
    log.warning("%s: has no tokenizer; using CLIP's", folder)
    return Tokenizer.clip(pad=next(row.pad for row in TEXT_ENCODERS if row.activation == text.config.activation))


def _check_family(folder: Path) -> None:
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    if not is_model_folder(folder):
        raise WeightsError(f"{folder}: has no {INDEX}; expected a model folder in the diffusers layout")
    if why := unsupported_reason(folder, index):
        raise WeightsError(f"{folder}: {why}")
    if unread := unread_components(index):
        log.warning("%s: its components %s are not supported; pictures are drawn without them",
                    folder, ", ".join(unread))  # fmt: skip


def _defaults(folder: Path, side: int) -> Defaults:
    if not (folder / SETTINGS).is_file():
        return Defaults(width=side, height=side)
    return read_config(folder / SETTINGS, diffusers_configs.defaults_from_json)


def _model_index(unet: UNetConfig) -> dict[str, Any]:
    inpaint = unet.channels == 2 * unet.out_channels + 1
    return {
        "_class_name": "StableDiffusionInpaintPipeline" if inpaint else "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",  # the oldest that our tests may run with
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
