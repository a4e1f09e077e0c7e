"""The diffusers layout: a folder with a sub-folder for each part, read and written so that diffusers reads it too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.schedule import schedule_from_config
from gradina.errors import WeightsError
from gradina.files import atomic_folder
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights import configs
from gradina.weights.card import model_card, restated
from gradina.weights.layout import CARD, INDEX, OURS, PAIR, PIPELINES
from gradina.weights.pairs import copy_pair
from gradina.weights.parts import Parts
from gradina.weights.remap import Table, sources, write
from gradina.weights.store import Weights, build, find_weights, open_weights, save_weights
from gradina.weights.tables import DROPPED, TEXT, UNET, VAE, with_text_model

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # file names
OLD_VAE = "encoder.mid_block.attentions.0.query.weight"  # how diffusers named attention before version 0.18

T = TypeVar("T")


def read_folder(
    path: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    name: str | None = None,
) -> Parts:
    """A folder of the diffusers layout; weights are mapped, and converted only where `dtype` asks for it.

    `variant` ("fp16") chooses among files, `prediction` (eps, v, x0) overrides what the scheduler's config says.
    Raises WeightsError.
    """
    folder = Path(path)
    _check_family(folder)
    unet_weights, vae_weights, text_weights = (
        open_weights(find_weights(folder / part, stem, variant)) for part, stem in STEMS.items()
    )
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    unet, vae = _unet(folder, unet_weights, dtype), _vae(folder, vae_weights, dtype)
    return Parts(
        unet=unet,
        vae=vae,
        text=_text(folder, text_weights, dtype),
        tokenizer=_tokenizer(folder),
        schedule=schedule_from_config(scheduler),
        prediction=prediction_named(prediction or scheduler.get("prediction_type", "epsilon")).name,
        defaults=_defaults(folder, unet.config.size * vae.config.factor),
        name=name or folder.resolve().name,
        card=_words(folder / CARD),
        files=(*text_weights.files, *unet_weights.files, *vae_weights.files),
        clip=folder / PAIR if (folder / PAIR / "config.json").is_file() else None,
    )


def write_folder(parts: Parts, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the diffusers layout, whole or not at all; its card is the model's own, or a new one.

    The text tower's projection, which no picture needs, is left out; a contrastive pair goes along in `clip/`.
    Raises DiskError, or WeightsError for a pair that is gone.
    """
    card = restated(parts.card, parts, dtype) if parts.card else model_card(parts, dtype)
    unet, vae, text = parts.unet.config, parts.vae.config, parts.text.config
    size = unet.size * vae.factor
    with atomic_folder(path) as folder:
        for part, network, table, dialect, config in (
            ("unet", parts.unet, UNET, "diffusers", configs.unet_to(unet)),
            ("vae", parts.vae, VAE, "diffusers", configs.vae_to(vae, size)),
            ("text_encoder", parts.text, TEXT, "transformers", configs.text_to(text)),
        ):
            _write_json(folder / part / "config.json", config)
            _write_network(network, table, dialect, folder / part / f"{STEMS[part]}.safetensors", dtype)
        parts.tokenizer.save(folder / "tokenizer")
        _write_json(folder / "scheduler" / "scheduler_config.json", parts.schedule.to_config(parts.prediction))
        if parts.clip is not None:
            copy_pair(parts.clip, folder / PAIR, dtype)
        _write_json(folder / INDEX, _model_index(unet))
        _write_json(folder / OURS, {"defaults": asdict(parts.defaults)})
        (folder / CARD).write_text(card, encoding="utf-8")


def _words(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _unet(folder: Path, weights: Weights, dtype: torch.dtype | None) -> UNet:
    timed = "time_embedding.linear_1.weight" in weights.tensors
    config = _config(folder / "unet" / "config.json", lambda json: configs.unet_from(json, timed))
    where = partial(sources, table=UNET, dialect="diffusers")
    return build(UNet, config, weights, where, dialect="U-Net in the diffusers layout", dtype=dtype)


def _vae(folder: Path, weights: Weights, dtype: torch.dtype | None) -> AutoencoderKL:
    config = _config(folder / "vae" / "config.json", configs.vae_from)
    where = partial(sources, table=VAE, dialect="diffusers-old" if OLD_VAE in weights.tensors else "diffusers")
    return build(AutoencoderKL, config, weights, where, dialect="autoencoder in the diffusers layout", dtype=dtype)


def _text(folder: Path, weights: Weights, dtype: torch.dtype | None) -> TextTower:
    projection = weights.tensors.get("text_projection.weight")
    width = None if projection is None else projection.shape[0]
    config = _config(folder / "text_encoder" / "config.json", lambda json: configs.text_from(json, width))
    weights = replace(weights, tensors=with_text_model(weights.tensors))
    where = partial(sources, table=TEXT, dialect="transformers")
    dialect = "text tower in the transformers layout"
    return build(TextTower, config, weights, where, dropped=DROPPED["text"], dialect=dialect, dtype=dtype)


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else Tokenizer.clip()


def _check_family(folder: Path) -> None:
    if not (folder / INDEX).is_file():
        raise WeightsError(f"{folder}: has no {INDEX}; expected a model folder in the diffusers layout")
    name = _json(folder / INDEX).get("_class_name")
    if name not in PIPELINES:
        raise WeightsError(f"{folder}: is a {name}, another family; expected one of {', '.join(PIPELINES)}")


def _config(path: Path, reader: Callable[[Any], T]) -> T:
    content = _json(path)
    try:
        return reader(content)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: a setting is missing or malformed ({error!r}); fetch the folder again") from error


def _defaults(folder: Path, side: int) -> Defaults:
    if not (folder / OURS).is_file():
        return Defaults(width=side, height=side)
    return _config(folder / OURS, lambda json: Defaults(**json["defaults"]))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file; expected a model folder in the diffusers layout") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(content).__name__}; fetch it again")
    return content


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
