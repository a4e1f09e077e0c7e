"""LoRA files of diffusers, peft and kohya's scripts, read and written."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradina.adapters.lora import LoRA, LoRAWeights
from gradina.errors import WeightsError
from gradina.files import read_json
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.formats.lora_names import (
    is_for_other_text_tower,
    layer_names,
    other_family,
    parse_name,
    spellings_of,
    unsupported_kind,
)
from gradina.weights.json_config import config_errors
from gradina.weights.key_tables import TEXT, UNET
from gradina.weights.safetensors import Weights, open_weights, save_weights

log = logging.getLogger(__name__)

BUNDLED = "bundle_emb."  # the prefix of embeddings that OneTrainer writes into a LoRA's file
STATES = "states"  # text states, beside the LoRA of an Imagic file
LoRADialect = Literal["diffusers", "kohya"]
PREFIXES = {"diffusers": ("unet.", "text_encoder."), "kohya": ("lora_unet_", "lora_te_")}  # as they are written
PEFT_METADATA = "lora_adapter_metadata"  # peft's config, in the metadata of diffusers' files
PEFT_CONFIG = "adapter_config.json"  # the same, beside peft's own files


def read_lora(path: str | PathLike[str], unet: UNet, text: TextTower) -> LoRA:
    """The LoRA in a safetensors file, for these networks. Raises WeightsError for other kinds, families, and NaN."""
    return lora_of(open_weights(Path(path)), unet, text)


def lora_of(file: Weights, unet: UNet, text: TextTower) -> LoRA:
    """The LoRA in an open file, as `read_lora` reads it."""
    path = file.path
    check_plain_lora(path, file.tensors)
    found, unused = _sort(file, unet, text)
    networks: dict[str, nn.Module] = {"unet": unet, "text": text}
    layers: dict[str, dict[str, LoRAWeights]] = {"unet": {}, "text": {}}
    alphas = _alphas(path, file.metadata)
    for (network, layer), names in found.items():
        if not {"down", "up"} <= set(names):
            raise WeightsError(f"{path}: {layer} of {network} has {' and '.join(names)}, expected down and up")
        tensors = {role: _check_values(path, name, file.tensors[name]) for role, name in names.items()}
        if network in alphas:
            tensors.setdefault("alpha", torch.tensor(alphas[network]))
        module = networks[network].get_submodule(layer)
        layers[network][layer] = _fit(path, layer, module, tensors, is_sdxl=bool(unused))
    if unused:
        log.warning(
            "%s: %d of its %d tensors are for a second text tower, which this model does not have; "
            "they are ignored (first: %s)",
            path, len(unused), len(file.tensors), unused[0],
        )  # fmt: skip
    every = [weights for each in layers.values() for weights in each.values()]
    if every and not any(weights.alpha and weights.down.any() and weights.up.any() for weights in every):
        log.warning("%s: has no effect, as all %d layers add 0 (their weights, or alpha, are 0)", path, len(every))
    return LoRA(**layers)


def write_lora(
    lora: LoRA, path: str | PathLike[str], unet: UNet, text: TextTower, dialect: LoRADialect = "diffusers"
) -> None:
    """Writes a LoRA for these networks. Raises DiskError."""
    save_weights(lora_state_dict(lora, unet, text, dialect), Path(path))


def lora_state_dict(lora: LoRA, unet: UNet, text: TextTower, dialect: LoRADialect = "diffusers") -> dict[str, Tensor]:
    """The tensors of a LoRA by their names in a dialect."""
    tensors: dict[str, Tensor] = {}
    names = (layer_names(unet, UNET, "diffusers"), layer_names(text, TEXT, "transformers"))
    for prefix, layers, known in zip(PREFIXES[dialect], (lora.unet, lora.text), names, strict=True):
        for layer, weights in layers.items():
            if dialect == "kohya":
                name = prefix + known[layer].replace(".", "_")
                tensors |= {f"{name}.lora_down.weight": weights.down, f"{name}.lora_up.weight": weights.up}
                tensors[f"{name}.alpha"] = torch.tensor(weights.alpha)
            else:
                # diffusers and peft take alpha to be the rank unless their config says otherwise
                name, scale = prefix + known[layer], weights.alpha / weights.rank
                up = weights.up if scale == 1 else (weights.up.float() * scale).to(weights.up.dtype)
                tensors |= {f"{name}.lora_A.weight": weights.down, f"{name}.lora_B.weight": up}
    return tensors


def check_plain_lora(path: Path, names: Iterable[str]) -> None:
    """Raises WeightsError for a file with the names of LoHa, DoRA or another kind that is not supported."""
    kinds = [(kind, name) for name in names if (kind := unsupported_kind(name))]
    if kinds:
        kind, first = kinds[0]
        count = sum(other == kind for other, _ in kinds)
        raise WeightsError(
            f"{path}: {count} of its tensors are those of {kind} (first: {first}), which is no plain LoRA; "
            "that kind is not supported"
        )


def peft_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file of peft's from the config beside it; empty for other files."""
    config = path.parent / PEFT_CONFIG
    if path.stem != "adapter_model" or not config.is_file():
        return {}
    settings = {f"{part}.{key}": x for part in ("unet", "text_encoder") for key, x in read_json(config).items()}
    return {PEFT_METADATA: json.dumps(settings)}


def _sort(file: Weights, unet: UNet, text: TextTower) -> tuple[dict[tuple[str, str], dict[str, str]], list[str]]:
    """For each layer the name of its down, up and alpha, and the names that are for a second text tower."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    unused, bundled, unknown, spellings = [], [], [], spellings_of(unet, text)
    for name in file.tensors:
        key = parse_name(name, spellings)
        if is_for_other_text_tower(name):
            unused.append(name)
        elif name.startswith(BUNDLED):
            bundled.append(name)
        elif key is not None:
            first = found[key.network, key.layer].setdefault(key.role, name)
            if first != name:
                raise WeightsError(f"{file.path}: {first} and {name} are the same; expected one LoRA in a file")
        elif name != STATES:
            unknown.append(name)
    family = other_family(unknown)
    advice = f"; it is for {family}, take one that was made for this family" if family else ""
    if not found and STATES not in file.tensors:
        first = [*unknown, *unused, "none"][0]
        raise WeightsError(f"{file.path}: holds no LoRA for this model (first of its names: {first}){advice}")
    if unknown:
        raise WeightsError(
            f"{file.path}: {len(unknown)} of its names fit no layer of this model (first: {unknown[0]}){advice}"
        )
    if bundled:
        tokens = ", ".join(dict.fromkeys(name.split(".")[1] for name in bundled))
        log.warning("%s: the embeddings that are bundled with it are ignored (%s)", file.path, tokens)
    return found, unused


def _check_values(path: Path, name: str, x: Tensor) -> Tensor:
    if x.is_complex() or (x.numel() > 1 and not x.is_floating_point()):  # alpha may be an integer
        dtype = str(x.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {name} is {dtype}, expected floating point; take another copy")
    if not torch.isfinite(x.float()).all():
        raise WeightsError(f"{path}: {name} holds NaN or infinite values; fetch or make the file again")
    return x


def _alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """The alpha of all layers of a network, from peft's config in or beside the file; without one it is the rank."""
    text = {**metadata, **peft_metadata(path)}.get(PEFT_METADATA, "{}")
    with config_errors(path):
        settings: dict[str, Any] = dict(json.loads(text))
    for key, value in settings.items():
        setting = key.rpartition(".")[2]
        if value and setting in ("use_rslora", "use_dora", "alpha_pattern"):
            raise WeightsError(f"{path}: was made with {setting}, which is not supported; expected one alpha for all")
    keys = {"unet": "unet.lora_alpha", "text": "text_encoder.lora_alpha"}
    alphas = {network: settings[key] for network, key in keys.items() if key in settings}
    for value in alphas.values():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise WeightsError(f"{path}: its lora_alpha is {value!r}, expected a number")
    return alphas


def _fit(path: Path, name: str, layer: nn.Module, tensors: Mapping[str, Tensor], is_sdxl: bool) -> LoRAWeights:
    """The weights in the shape of the layer: some write 1x1 convolutions as matrices, or the other way round."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    down, up, alpha, shape = tensors["down"], tensors["up"], tensors.get("alpha"), tuple(layer.weight.shape)
    if not {down.ndim, up.ndim} <= {2, 4} or not down.numel() or (alpha is not None and alpha.numel() != 1):
        shapes = ", ".join(f"{role} {tuple(x.shape)}" for role, x in tensors.items())
        raise WeightsError(f"{path}: {name} has {shapes}; expected two matrices or convolutions, and one alpha")
    if len(shape) == 4:
        down, up = (x[..., None, None] if x.ndim == 2 else x for x in (down, up))
    else:
        down, up = (x.flatten(1) if x.shape[2:] == (1, 1) else x for x in (down, up))
    weights = LoRAWeights(down, up, float(len(down)) if alpha is None else float(alpha))
    if weights.shape != shape or up.shape[1:] != (weights.rank, *[1] * (len(shape) - 2)):
        origin = "it is for Stable Diffusion XL; " if is_sdxl else ""
        raise WeightsError(
            f"{path}: {name}: the LoRA is for a layer of shape {'x'.join(map(str, weights.shape))}, "
            f"this model's has {'x'.join(map(str, shape))}; {origin}take one that was made for this family"
        )
    return weights
