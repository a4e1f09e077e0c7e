"""The diffusers layout: a folder with a sub-folder for each part, read and written so that diffusers reads it too."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradina.errors import WeightsError
from gradina.files import atomic_folder
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights.components import Components, fitting, predicted
from gradina.weights.detect import HOMES
from gradina.weights.formats import diffusers_configs
from gradina.weights.formats.clip import copy_pair
from gradina.weights.formats.diffusers_layout import CARD, INDEX, OURS, PAIR, is_model, refusal, unread
from gradina.weights.formats.scheduler_config import schedule_to_config
from gradina.weights.formats.unsupported import refuse_channels
from gradina.weights.formats.vae import build_vae, read_vae
from gradina.weights.json_config import read_json, read_settings
from gradina.weights.key_tables import DROPPED, TEXT, UNET, VAE, with_text_model
from gradina.weights.model_card import model_card, restated
from gradina.weights.remap import Table, sources, write
from gradina.weights.safetensors import Weights, build, open_weights, save_weights
from gradina.weights.variants import STEMS, Opener, choose, files

log = logging.getLogger(__name__)


def read_folder(
    path: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    name: str | None = None,
    pickles: Opener | None = None,
    stand_in: Path | None = None,
) -> Components:
    """A folder of the diffusers layout; weights are mapped, and converted only where `dtype` asks for it.

    `variant` ("fp16") chooses among files, `prediction` (eps, v, x0) overrides what the scheduler's config says, and
    `pickles` opens .bin files, which are refused without it; `stand_in` is an autoencoder for a folder without one.
    Raises WeightsError.
    """
    folder = Path(path)
    _check_family(folder)
    lacks_vae = stand_in is not None and not files(folder / "vae", "vae", pickles is not None)
    places = {part: folder / part for part in STEMS if not (lacks_vae and part == "vae")}
    chosen = choose(places, variant, pickles is not None, name or str(folder))
    opened = {part: (pickles or open_weights)(file) for part, file in chosen.items()}
    unet, text = _unet(folder, opened["unet"], dtype), _text(folder, opened["text_encoder"], dtype)
    vae = read_vae(stand_in).vae if stand_in and lacks_vae else _vae(folder, opened["vae"], dtype)
    schedule, said = read_settings(folder / "scheduler" / "scheduler_config.json", diffusers_configs.schedule_from)
    parts = Components(
        unet=unet,
        vae=vae,
        text=text,
        tokenizer=_tokenizer(folder, text),
        schedule=schedule,
        prediction=predicted(folder, prediction, said),
        defaults=_defaults(folder, unet.config.size * vae.config.factor),
        name=name or folder.resolve().name,
        card=_words(folder / CARD),
        files=tuple(file for part in ("text_encoder", "unet", "vae") if part in opened for file in opened[part].files),
        clip=folder / PAIR if (folder / PAIR / "config.json").is_file() else None,
    )
    return fitting(parts, folder)


def write_folder(parts: Components, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the diffusers layout, whole or not at all; its card is the model's own, or a new one.

    The text tower's projection, which no picture needs, is left out; a contrastive pair goes along in `clip/`.
    Raises DiskError, or WeightsError for a pair that is gone.
    """
    card = restated(parts.card, parts, dtype) if parts.card else model_card(parts, dtype)
    unet, vae, text = parts.unet.config, parts.vae.config, parts.text.config
    size = unet.size * vae.factor
    with atomic_folder(path) as folder:
        for part, network, table, dialect, config in (
            ("unet", parts.unet, UNET, "diffusers", diffusers_configs.unet_to(unet)),
            ("vae", parts.vae, VAE, "diffusers", diffusers_configs.vae_to(vae, size)),
            ("text_encoder", parts.text, TEXT, "transformers", diffusers_configs.text_to(text)),
        ):
            _write_json(folder / part / "config.json", config)
            _write_network(network, table, dialect, folder / part / f"{STEMS[part]}.safetensors", dtype)
        parts.tokenizer.save(folder / "tokenizer")
        _write_json(
            folder / "scheduler" / "scheduler_config.json", schedule_to_config(parts.schedule, parts.prediction)
        )
        if parts.clip is not None:
            copy_pair(parts.clip, folder / PAIR, dtype)
        _write_json(folder / INDEX, _model_index(unet))
        _write_json(folder / OURS, {"defaults": asdict(parts.defaults)})
        (folder / CARD).write_text(card, encoding="utf-8")


def _words(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _unet(folder: Path, weights: Weights, dtype: torch.dtype | None) -> UNet:
    timed = "time_embedding.linear_1.weight" in weights.tensors
    config = read_settings(folder / "unet" / "config.json", lambda json: diffusers_configs.unet_from(json, timed))
    refuse_channels(folder, config.channels, config.out_channels)
    where = partial(sources, table=UNET, dialect="diffusers")
    dialect = "U-Net in the diffusers layout"
    return build(UNet, config, weights, where, dropped=DROPPED["unet"], dialect=dialect, dtype=dtype)


def _vae(folder: Path, weights: Weights, dtype: torch.dtype | None) -> AutoencoderKL:
    config = read_settings(folder / "vae" / "config.json", diffusers_configs.vae_from)
    return build_vae(weights, config, "diffusers", "autoencoder in the diffusers layout", dtype)


def _text(folder: Path, weights: Weights, dtype: torch.dtype | None) -> TextTower:
    projection = weights.tensors.get("text_projection.weight")
    width = None if projection is None else projection.shape[0]
    config = read_settings(
        folder / "text_encoder" / "config.json", lambda json: diffusers_configs.text_from(json, width)
    )
    weights = replace(weights, tensors=with_text_model(weights.tensors))
    where = partial(sources, table=TEXT, dialect="transformers")
    dialect = "text tower in the transformers layout"
    return build(TextTower, config, weights, where, dropped=DROPPED["text"], dialect=dialect, dtype=dtype)


def _tokenizer(folder: Path, text: TextTower) -> Tokenizer:
    """The folder's own, or CLIP's where it has none, which fills texts up as single files of its family do."""
    if (folder / "tokenizer").is_dir():
        return Tokenizer.load(folder / "tokenizer")
    log.warning("%s: has no tokenizer; CLIP's is taken", folder)
    return Tokenizer.clip(pad=next(home.pad for home in HOMES if home.activation == text.config.activation))


def _check_family(folder: Path) -> None:
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    if not is_model(folder):
        raise WeightsError(f"{folder}: has no {INDEX}; expected a model folder in the diffusers layout")
    if why := refusal(folder, index):
        raise WeightsError(f"{folder}: {why}")
    if others := unread(index):
        log.warning("%s: its parts %s are not read here; pictures are drawn without them", folder, ", ".join(others))


def _defaults(folder: Path, side: int) -> Defaults:
    if not (folder / OURS).is_file():
        return Defaults(width=side, height=side)
    return read_settings(folder / OURS, diffusers_configs.defaults_from)


def _write_network(network: nn.Module, table: Table, dialect: str, path: Path, dtype: torch.dtype | None) -> None:
    ours = {name: x if dtype is None else x.to(dtype) for name, x in network.state_dict().items()}
    ours.pop("projection.weight", None)
    save_weights(write(ours, sources(ours, table, dialect)), path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


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
