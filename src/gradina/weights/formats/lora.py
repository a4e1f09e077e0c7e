"""LoRA files: as diffusers and peft write them, and as kohya's scripts do, which most others follow; ours are either.

What a file calls a layer is looked up among all spellings of the layers that the model has.
"""

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

from gradina.adapters.lora import Layers, LoRA, LoRAWeights, shape_of
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.formats.lora_names import family_of, is_further, kind_of, layers_named, place, spellings_of
from gradina.weights.key_tables import TEXT, UNET
from gradina.weights.safetensors import Weights, open_weights, save_weights

log = logging.getLogger(__name__)

BUNDLED = "bundle_emb."  # how the names of words begin that OneTrainer puts into a LoRA's file
STATES = "states"  # beside the LoRA of an edit
LoRADialect = Literal["diffusers", "kohya"]
WRITTEN = {"diffusers": ("unet.", "text_encoder."), "kohya": ("lora_unet_", "lora_te_")}
TOLD = "lora_adapter_metadata"  # peft's settings, in the metadata of diffusers' files
BESIDE = "adapter_config.json"  # the same, beside peft's own files

Halves = dict[str, str]  # half (down, up, alpha) -> its name in the file


def read_lora(path: str | PathLike[str], unet: UNet, text: TextTower) -> LoRA:
    """The LoRA in a safetensors file, for these networks; what is for a second text tower is left out, with a warning.

    Raises WeightsError for a file that holds none, one of another kind, one that was made for another family, or one
    with NaN or infinite values.
    """
    path = Path(path)
    file = open_weights(path)
    refuse_other_kinds(path, file.tensors)
    found, further = _places(file, unet, text)
    networks: dict[str, nn.Module] = {"unet": unet, "text": text}
    learnt: dict[str, dict[str, LoRAWeights]] = {"unet": {}, "text": {}}
    alphas = _alphas(path, file.metadata)
    for (part, layer), halves in found.items():
        if not {"down", "up"} <= set(halves):
            raise WeightsError(f"{path}: {layer} of {part} has {' and '.join(halves)}, expected down and up")
        tensors = {half: _finite(path, name, file.tensors[name]) for half, name in halves.items()}
        if part in alphas:
            tensors.setdefault("alpha", torch.tensor(alphas[part]))
        learnt[part][layer] = _fitting(path, layer, networks[part].get_submodule(layer), tensors, further)
    if further:
        log.warning(
            "%s: %d of its %d tensors are for a second text tower, which this model does not have; "
            "they are left out (the first: %s)",
            path, len(further), len(file.tensors), further[0],
        )  # fmt: skip
    every = [thin for layers in learnt.values() for thin in layers.values()]
    if every and not any(thin.alpha and thin.down.any() and thin.up.any() for thin in every):
        log.warning("%s: has no effect, as all %d layers add 0 (their weights, or alpha, are 0)", path, len(every))
    return LoRA(**learnt)


def write_lora(
    lora: LoRA,
    path: str | PathLike[str],
    unet: UNet,
    text: TextTower,
    dialect: LoRADialect = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a LoRA for these networks. Raises DiskError.

    diffusers and peft take alpha for the rank, unless they are told otherwise elsewhere: so there it goes into `up`.
    """
    save_weights(named(lora, unet, text, dialect), Path(path), metadata)


def named(lora: LoRA, unet: UNet, text: TextTower, dialect: LoRADialect = "diffusers") -> dict[str, Tensor]:
    """What a LoRA's numbers are called in a dialect."""
    tensors: dict[str, Tensor] = {}
    names = {"unet": layers_named(unet, UNET, "diffusers"), "text": layers_named(text, TEXT, "transformers")}
    parts: dict[str, Layers] = {"unet": lora.unet, "text": lora.text}
    for head, (part, layers) in zip(WRITTEN[dialect], parts.items(), strict=True):
        for layer, thin in layers.items():
            if dialect == "kohya":
                name = head + names[part][layer].replace(".", "_")
                tensors |= {f"{name}.lora_down.weight": thin.down, f"{name}.lora_up.weight": thin.up}
                tensors[f"{name}.alpha"] = torch.tensor(thin.alpha)
            else:
                name, share = head + names[part][layer], thin.alpha / thin.rank
                up = thin.up if share == 1 else (thin.up.float() * share).to(thin.up.dtype)
                tensors |= {f"{name}.lora_A.weight": thin.down, f"{name}.lora_B.weight": up}
    return tensors


def refuse_other_kinds(path: Path, names: Iterable[str]) -> None:
    """Raises WeightsError for a file in which these names are those of LoHa, DoRA and their like."""
    kinds = [(kind, name) for name in names if (kind := kind_of(name))]
    if kinds:
        kind, first = kinds[0]
        count = sum(other == kind for other, _ in kinds)
        raise WeightsError(
            f"{path}: {count} of its tensors are those of {kind} (the first: {first}), which is no plain LoRA; "
            "those are not read"
        )


def settings_beside(path: Path) -> dict[str, str]:
    """The metadata in which a file of peft's says what otherwise stands beside it; empty for other files."""
    beside = path.parent / BESIDE
    if path.stem != "adapter_model" or not beside.is_file():
        return {}
    told = _object(f"{beside}", beside.read_bytes())
    return {TOLD: json.dumps({f"{part}.{key}": x for part in ("unet", "text_encoder") for key, x in told.items()})}


def _places(file: Weights, unet: UNet, text: TextTower) -> tuple[dict[tuple[str, str], Halves], list[str]]:
    """For each layer the names of its halves, and the names that are for a second text tower."""
    found: dict[tuple[str, str], Halves] = defaultdict(dict)
    further, bundled, unknown, spellings = [], [], [], spellings_of(unet, text)
    for name in file.tensors:
        where = place(name, spellings)
        if is_further(name):
            further.append(name)
        elif name.startswith(BUNDLED):
            bundled.append(name)
        elif where is not None:
            other = found[where.part, where.layer].setdefault(where.half, name)
            if other != name:
                raise WeightsError(f"{file.path}: {other} and {name} are the same; expected one LoRA in a file")
        elif name != STATES:
            unknown.append(name)
    family = family_of(unknown)
    whose = f"; it is for {family}, take one that was made for this family" if family else ""
    if not found and STATES not in file.tensors:
        first = [*unknown, *further, "none"][0]
        raise WeightsError(f"{file.path}: holds no LoRA for this model (its first name: {first}){whose}")
    if unknown:
        raise WeightsError(
            f"{file.path}: {len(unknown)} of its names fit no layer of this model (the first: {unknown[0]}){whose}"
        )
    if bundled:
        words = ", ".join(dict.fromkeys(name.split(".")[1] for name in bundled))
        log.warning("%s: the words that are bundled with it are left out (%s)", file.path, words)
    return found, further


def _finite(path: Path, name: str, x: Tensor) -> Tensor:
    if x.is_complex() or (x.numel() > 1 and not x.is_floating_point()):  # alpha may be a whole number
        kind = str(x.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {name} holds {kind} numbers, expected floating point; take another copy")
    if not torch.isfinite(x.float()).all():
        raise WeightsError(f"{path}: {name} holds NaN or infinite values; fetch or make the file again")
    return x


def _alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """What a file, or what peft puts beside it, says of alpha for all layers of a part; nothing: it is the rank."""
    text = {**metadata, **settings_beside(path)}.get(TOLD, "{}")
    told, heads = _object(f"{path}: {TOLD} in its metadata", text), {"unet": "unet.", "text": "text_encoder."}
    for key, value in told.items():
        setting = key.rpartition(".")[2]
        if value and setting in ("use_rslora", "use_dora", "alpha_pattern"):
            raise WeightsError(f"{path}: was made with {setting}, which is not read; expected one alpha for all layers")
    alphas = {part: told[f"{head}lora_alpha"] for part, head in heads.items() if f"{head}lora_alpha" in told}
    for value in alphas.values():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise WeightsError(f"{path}: its lora_alpha is {value!r}, expected a number")
    return alphas


def _object(what: str, text: str | bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{what}: is no JSON object; fetch or make the file again") from error


def _fitting(path: Path, name: str, layer: nn.Module, halves: Mapping[str, Tensor], further: list[str]) -> LoRAWeights:
    """The halves as the layer has them: some write 1x1 convolutions as matrices, or the other way round."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    down, up, alpha, shape = halves["down"], halves["up"], halves.get("alpha"), shape_of(layer)
    if not {down.ndim, up.ndim} <= {2, 4} or not down.numel() or (alpha is not None and alpha.numel() != 1):
        shapes = ", ".join(f"{half} {tuple(x.shape)}" for half, x in halves.items())
        raise WeightsError(f"{path}: {name} has {shapes}; expected two matrices or convolutions, and one alpha")
    if len(shape) == 4:
        down, up = (x[..., None, None] if x.ndim == 2 else x for x in (down, up))
    else:
        down, up = (x.flatten(1) if x.shape[2:] == (1, 1) else x for x in (down, up))
    thin = LoRAWeights(down, up, float(len(down)) if alpha is None else float(alpha))
    if thin.shape != shape or up.shape[1:] != (thin.rank, *[1] * (len(shape) - 2)):
        whose = "it is for Stable Diffusion XL; " if further else ""
        raise WeightsError(
            f"{path}: {name}: the LoRA is for a layer of shape {'x'.join(map(str, thin.shape))}, "
            f"this model's has {'x'.join(map(str, shape))}; {whose}take one that was made for this family"
        )
    return thin
