"""LoRA files: as diffusers and peft write them, and as kohya's scripts do, which most others follow; ours are either.

What a file calls a layer is looked up among all spellings of the layers that the model has.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gradina.adapters.inject import multiplying
from gradina.adapters.lora import Layers, LoRA, Thin, shape_of
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.remap import Numbers, Table, sources
from gradina.weights.store import open_weights, save_weights
from gradina.weights.tables import TEXT, UNET, unet_numbers

STATES = "states"  # beside the LoRA of an edit
LoRADialect = Literal["diffusers", "kohya"]

PARTS = {  # how names begin
    "unet.": "unet", "lora_unet_": "unet", "text_encoder.": "text", "lora_te_": "text", "lora_te1_": "text",
}  # fmt: skip
WRITTEN = {"diffusers": ("unet.", "text_encoder."), "kohya": ("lora_unet_", "lora_te_")}
ENDINGS = (  # how they end: peft's and diffusers', diffusers' of 2023, kohya's
    re.compile(r"(?P<layer>.+)\.lora_(?P<half>A|B)(\.default)?\.weight"),
    re.compile(r"(?P<layer>.+)\.lora(_linear_layer)?\.(?P<half>down|up)\.weight"),
    re.compile(r"(?P<layer>.+\.processor\.to_(q|k|v|out)_lora)\.(?P<half>down|up)\.weight"),
    re.compile(r"(?P<layer>.+)\.lora_(?P<half>down|up)\.weight"),
    re.compile(r"(?P<layer>.+)\.(?P<half>alpha)"),
)
HALVES = {"A": "down", "B": "up"}
OTHER_KINDS = ("hada_", "lokr_", "oft_", "boft_", "dora_scale", "lora_magnitude_vector", "lora_mid", "glora", "ia3")


def read_lora(path: str | PathLike[str], unet: UNet, text: TextTower) -> LoRA:
    """The LoRA in a safetensors file, for these networks.

    Raises WeightsError for a file that holds none, one of another kind, or one that was made for another family.
    """
    path = Path(path)
    networks: dict[str, nn.Module] = {"unet": unet, "text": text}
    spellings = {"unet": _unet_names(unet), "text": _text_names(text)}
    found: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    file, unknown = open_weights(path), []
    for name, value in file.tensors.items():
        kind = next((kind for kind in OTHER_KINDS if kind in name), None)
        if kind:
            raise WeightsError(
                f"{path}: holds {name!r}, which is no plain LoRA ({kind.strip('_')}); those are not read"
            )
        if name == STATES:
            continue
        place = _place(name, spellings)
        if place is None:
            unknown.append(name)
        else:
            part, layer, half = place
            found[part, layer][half] = value
    if not found and STATES not in file.tensors:
        raise WeightsError(f"{path}: holds no LoRA for this model (its first name: {(unknown or ['none'])[0]})")
    if unknown:
        raise WeightsError(f"{path}: {len(unknown)} names fit no layer of this model (the first: {unknown[0]})")
    learnt: dict[str, dict[str, Thin]] = {"unet": {}, "text": {}}
    alphas = _alphas(path, file.metadata)
    for (part, layer), halves in found.items():
        if not {"down", "up"} <= set(halves):
            raise WeightsError(f"{path}: {layer} of {part} has {' and '.join(halves)}, expected down and up")
        if part in alphas:
            halves.setdefault("alpha", torch.tensor(alphas[part]))
        learnt[part][layer] = _thin(networks[part].get_submodule(layer), halves)
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
    names = {"unet": _layers(unet, UNET, "diffusers"), "text": _layers(text, TEXT, "transformers")}
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


def _alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """What a file, or what peft puts beside it, says of alpha for all layers of a part; nothing: it is the rank."""
    told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    heads = {"unet": "unet.", "text": "text_encoder."}
    beside = path.parent / "adapter_config.json"
    if path.name == "adapter_model.safetensors" and beside.is_file():
        told, heads = json.loads(beside.read_text(encoding="utf-8")), dict.fromkeys(heads, "")
    for key, value in told.items():
        if value and key.rpartition(".")[2] in ("use_rslora", "use_dora", "alpha_pattern"):
            raise WeightsError(f"{path}: was made with {key}, which is not read; expected one alpha for all layers")
    return {part: told[f"{head}lora_alpha"] for part, head in heads.items() if f"{head}lora_alpha" in told}


def _place(name: str, spellings: Mapping[str, Mapping[str, str]]) -> tuple[str, str, str] | None:
    """Which part, which layer of it by our name, and which half (down, up, alpha) a name of a file means."""
    match = next(filter(None, (ending.fullmatch(name) for ending in ENDINGS)), None)
    if match is None:
        return None
    layer, half = match["layer"].removeprefix("base_model.model."), HALVES.get(match["half"], match["half"])
    layer = re.sub(r"\.processor\.to_out_lora$", ".to_out.0", layer)
    layer = re.sub(r"\.processor\.(to_[qkv])_lora$", r".\1", layer)
    for head, part in PARTS.items():
        if layer.startswith(head):
            ours = spellings[part].get(layer.removeprefix(head))
            return (part, ours, half) if ours else None
    for part, names in spellings.items():  # peft says nothing of parts
        if layer in names:
            return part, names[layer], half
    return None


def _thin(layer: nn.Module, halves: Mapping[str, Tensor]) -> Thin:
    """The halves as the layer has them: some write 1x1 convolutions as matrices, or the other way round."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    down, up = halves["down"], halves["up"]
    dims = len(shape_of(layer))
    if dims == 4 and down.ndim == 2:
        down = down[..., None, None]
    if dims == 4 and up.ndim == 2:
        up = up[..., None, None]
    if dims == 2:
        down, up = (x.flatten(1) if x.shape[2:] == (1, 1) else x for x in (down, up))
    return Thin(down, up, float(halves["alpha"]) if "alpha" in halves else float(len(down)))


def _unet_names(unet: UNet) -> dict[str, str]:
    numbers = unet_numbers(unet.config)
    spelt = [_layers(unet, UNET, "diffusers"), _layers(unet, UNET, "original", numbers)]
    return _spellings(*spelt)


def _text_names(text: TextTower) -> dict[str, str]:
    return _spellings(_layers(text, TEXT, "transformers"))


def _spellings(*named: Mapping[str, str]) -> dict[str, str]:
    """All that our layers may be called, with dots or, as kohya writes, underscores."""
    found: dict[str, str] = {}
    for names in named:
        for ours, foreign in names.items():
            found |= {foreign: ours, foreign.replace(".", "_"): ours, foreign.removeprefix("text_model."): ours}
    return found


def _layers(network: nn.Module, table: Table, dialect: str, numbers: Numbers | None = None) -> dict[str, str]:
    """What the layers of a network are called in a dialect."""
    ours = [f"{name}.weight" for name, _ in multiplying(network)]
    where = sources(ours, table, dialect, numbers)
    return {name.removesuffix(".weight"): source.name.removesuffix(".weight") for name, source in where.items()}
