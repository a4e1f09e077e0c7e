"""The original layout: one file with U-Net, autoencoder and text tower, as Stable Diffusion was first published.

What shapes cannot say (heads, groups, schedule, defaults, an own vocabulary) stands in the metadata of files that
we write, under "gradina"; all else is detected, from their files and from ours.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradina.diffusion.schedule import Schedule, sd_schedule
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer
from gradina.models.unet import UNet
from gradina.models.vae import AutoencoderKL
from gradina.request import Defaults
from gradina.weights import detect, key_tables
from gradina.weights.components import Components, fitting, predicted
from gradina.weights.detect import Detected, TextHome
from gradina.weights.formats.ldm_metadata import KEPT, Said, as_said, said_by
from gradina.weights.formats.scheduler_config import schedule_to_config
from gradina.weights.formats.vae import in_original_layout, read_vae
from gradina.weights.json_config import naming
from gradina.weights.remap import Numbers, Table, sources, unclaimed, write
from gradina.weights.safetensors import Weights, build, open_weights, save_weights, unwrapped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Home:
    """Where a network lies in the file, by which names."""

    prefix: str
    table: Table
    dialect: str
    numbers: Numbers | None = None


def read_file(
    path: str | Path,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    name: str | None = None,
    stand_in: Path | None = None,
) -> Components:
    """An original single-file checkpoint of Stable Diffusion 1.x or 2.x; mapped, and detected by its tensors.

    `prediction` (eps, v, x0) overrides what is detected; `stand_in` is an autoencoder for a file without one. Warns
    with PredictionWarning where that is a guess; raises WeightsError for a file that is truncated, of another family,
    or lacking parameters.
    """
    weights = open_weights(path)
    if stand_in is not None and not weights.under(detect.VAE):
        weights = replace(
            weights, tensors={**weights.tensors, **in_original_layout(read_vae(stand_in).vae, detect.VAE)}
        )
    return parts_of(weights, dtype, prediction, name)


def parts_of(
    weights: Weights, dtype: torch.dtype | None = None, prediction: str | None = None, name: str | None = None
) -> Components:
    """The parts of an original checkpoint whose tensors are at hand; see `read_file`."""
    weights = replace(weights, tensors=unwrapped(weights.tensors))
    found = detect.detect(weights)
    ours = said_by(weights)
    found = replace(found, **{part: as_said(getattr(found, part), part, ours, weights) for part in KEPT})
    said = ours.prediction or detect.said_of(weights)
    chosen = predicted(weights.path, prediction or (None if said else detect.guessed(weights, found)), said)
    found = replace(found, unet=_sized(found, ours, chosen))
    networks: dict[str, Any] = {part: _network(weights, part, found, dtype) for part in KEPT}
    _note_the_rest(weights, found.home)
    side = found.unet.size * found.vae.factor
    parts = Components(
        **networks,
        tokenizer=_tokenizer(weights, ours.tokenizer, found),
        schedule=ours.schedule or _schedule(weights),
        prediction=chosen,
        defaults=ours.defaults or Defaults(width=side, height=side),
        name=name or weights.path.stem,
        files=(weights.path,),
    )
    return fitting(parts, weights.path)


def write_file(parts: Components, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the original layout as one safetensors file, whole or not at all.

    The text tower takes the names of SD 1 (quick GELU) or SD 2 (GELU); its projection is left out. Raises DiskError.
    """
    home = next(h for h in detect.HOMES if h.activation == parts.text.config.activation)
    found = Detected("", parts.unet.config, parts.vae.config, parts.text.config, home)
    tensors: dict[str, Tensor] = {}
    for part in KEPT:
        ours = getattr(parts, part).state_dict()
        ours.pop("projection.weight", None)
        to = _home(part, found)
        tensors |= write(ours, sources(ours, to.table, to.dialect, to.numbers, to.prefix))
    if dtype is not None:
        tensors = {name: x.to(dtype) for name, x in tensors.items()}
    save_weights(tensors, path, metadata=_written(parts))


def _home(part: str, found: Detected) -> Home:
    return {
        "unet": Home(detect.UNET, key_tables.UNET, "original", key_tables.unet_numbers(found.unet)),
        "vae": Home(detect.VAE, key_tables.VAE, "original", key_tables.vae_numbers(found.vae)),
        "text": Home(found.home.prefix, key_tables.TEXT, found.home.dialect),
    }[part]


def _network(weights: Weights, part: str, found: Detected, dtype: torch.dtype | None) -> nn.Module:
    home = _home(part, found)
    network: Any = {"unet": UNet, "vae": AutoencoderKL, "text": TextTower}[part]
    unused = [f"transformer.resblocks.{found.text.layers}.*"] if part == "text" else []  # after the penultimate layer
    return build(
        network,
        getattr(found, part),
        replace(weights, tensors=_spelt(part, weights.under(home.prefix))),
        partial(sources, table=home.table, dialect=home.dialect, numbers=home.numbers),
        dropped=[*key_tables.DROPPED[part], *unused],
        dialect=f"{network.__name__} of an original {found.family} checkpoint, under {home.prefix}",
        dtype=dtype,
    )


def _spelt(part: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The names of a network as our tables spell them."""
    if part == "vae":
        return key_tables.with_attention_of("original", tensors)
    return key_tables.with_text_model(tensors) if part == "text" else tensors


def _note_the_rest(weights: Weights, home: TextHome) -> None:
    """What lies outside the three networks changes no picture; it is let go, and a note says so."""
    outside = [n for n in weights.tensors if not n.startswith((detect.UNET, detect.VAE, home.prefix))]
    rest = unclaimed(outside, {}, key_tables.DROPPED["outside"])
    if rest:
        log.warning("%s: %d tensors of no network here are left out (first: %s)", weights.path, len(rest), rest[0])


def _sized(found: Detected, ours: Said, prediction: str) -> Any:
    """SD 2 learnt velocities on 768 pixels, everything else of the family saw 512."""
    large = found.unet.linear and found.unet.context == 1024 and prediction == "v" and not ours.unet
    return replace(found.unet, size=96) if large else found.unet


def _schedule(weights: Weights) -> Schedule:
    return sd_schedule(rescale_betas_zero_snr=True) if "ztsnr" in weights.tensors else sd_schedule()


def _tokenizer(weights: Weights, said: Mapping[str, Any] | None, found: Detected) -> Tokenizer:
    if said is None and found.text.vocabulary < 49408:
        raise WeightsError(
            f"{weights.path}: the text tower knows {found.text.vocabulary} tokens, not CLIP's 49408, and the file does "
            "not say which; take the model as a folder"
        )
    if said is None:
        return Tokenizer.clip(length=found.text.length, pad=found.home.pad)
    with naming(weights.path), tempfile.TemporaryDirectory() as folder:
        if "files" not in said:
            return Tokenizer.clip(length=said["length"], pad=said["pad"])
        for file, text in said["files"].items():
            (Path(folder) / Path(file).name).write_text(text, encoding="utf-8", newline="\n")
        return Tokenizer.load(folder)


def _texts(tokenizer: Tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {p.name: p.read_text(encoding="utf-8") for p in sorted(Path(folder).iterdir())}


@cache
def _clip_texts(length: int, pad: int) -> dict[str, str]:
    return _texts(Tokenizer.clip(length, pad))


def _written(parts: Components) -> dict[str, str]:
    """Metadata: ours, and the fields of ModelSpec that other programs read."""
    files, pad, length = _texts(parts.tokenizer), parts.tokenizer.pad, parts.tokenizer.length
    clip = len(parts.tokenizer) == 49408 and files == _clip_texts(length, pad)
    ours = {
        **{part: {key: getattr(getattr(parts, part).config, key) for key in keys} for part, keys in KEPT.items()},
        "scheduler": schedule_to_config(parts.schedule, parts.prediction),
        "defaults": asdict(parts.defaults),
        "tokenizer": {"length": length, "pad": pad} if clip else {"files": files},
    }
    generation = "v2" if parts.text.config.activation == "gelu" else "v1"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{generation}",
        "modelspec.implementation": "https://github.com/Stability-AI/stablediffusion",
        "modelspec.title": parts.name,
        "modelspec.prediction_type": {"eps": "epsilon"}.get(parts.prediction, parts.prediction),
        "modelspec.resolution": f"{parts.defaults.width}x{parts.defaults.height}",
        "gradina": json.dumps(ours, sort_keys=True),
    }
