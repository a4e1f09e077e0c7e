"""Names of tensors in LoRA files: every spelling of a model's layers, and the names of kinds that are not supported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from gradina.adapters.inject import linear_and_conv_layers
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.key_tables import TEXT, UNET, unet_indices
from gradina.weights.remap import Indices, Table, sources

PREFIXES = {  # of the names, to the network: of diffusers, kohya's scripts, LyCORIS, ComfyUI
    "unet.": "unet", "lora_unet_": "unet", "lycoris_": "unet", "diffusion_model.": "unet",
    "model.diffusion_model.": "unet", "text_encoder.": "text", "lora_te_": "text", "lora_te1_": "text",
    "text_encoders.clip_l.transformer.": "text", "text_encoders.clip_h.transformer.": "text",
}  # fmt: skip
OTHER_TEXT_TOWERS = ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3.", "text_encoders.")
PEFT = "base_model.model."
SUFFIXES = (  # peft's (with or without an adapter's name) and kohya's; diffusers' of 2023, later and earlier
    re.compile(r"(?P<layer>.+)\.lora_(?P<role>A|B|down|up)(\.[^.]+)?\.weight"),
    re.compile(r"(?P<layer>.+)\.lora(_linear_layer)?\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<layer>.+\.to_(q|k|v|out)_lora)\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<layer>.+)\.(?P<role>alpha)"),
)
ROLES = {"A": "down", "B": "up"}  # of peft
UNSUPPORTED = (  # kinds that are no plain LoRA, by what their tensors are called
    ("LoHa", r"\.hada_"), ("LoKr", r"\.lokr_"), ("OFT", r"oft_|\.oft\."), ("GLoRA", r"\.(a|b)[12]\.weight$|glora"),
    ("layers by number (cloneofsimo's trainer)", r"^(unet|text_encoder):\d+:"),
    ("DoRA", r"dora_scale|lora_magnitude_vector"), ("LoCon with a middle (CP)", r"\.lora_mid\."),
    ("IA3", r"ia3|\.on_input$"), ("full differences", r"\.(diff|diff_b|set_weight|w_norm|b_norm)$"),
)  # fmt: skip
FAMILIES = (  # other families, by the names of their layers
    ("Wan", r"(?<![a-z])blocks[._]\d+[._](self|cross)_attn"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"),
    ("Lumina or Z-Image", r"(?<![a-z])layers[._]\d+[._]attention[._]"),
    ("Flux", r"(double|single)_blocks|single_transformer_blocks"),
    ("Stable Diffusion 3", r"joint_blocks|transformer[._]transformer_blocks"),
    ("Stable Diffusion XL", r"transformer_blocks[._][1-9]|add_embedding|label_emb"),
)

Spellings = Mapping[str, Mapping[str, str]]  # network -> what a layer may be called -> our name of it


@dataclass(frozen=True)
class LoRAKey:
    """What a tensor of a LoRA is: network (unet, text), our name of the layer, and role (down, up, alpha)."""

    network: str
    layer: str
    role: str


def parse_name(name: str, spellings: Spellings) -> LoRAKey | None:
    """What a name in a file stands for; None for an unknown layer."""
    match = next(filter(None, (suffix.fullmatch(name) for suffix in SUFFIXES)), None)
    if match is None:
        return None
    role = ROLES.get(match["role"], match["role"])
    layer = match["layer"].removeprefix(PEFT).replace(".processor.", ".")
    plain = re.sub(r"(\.lora(_linear_layer)?|_lora)$", "", layer)
    layer = f"{plain}.0" if plain != layer and plain.endswith(".to_out") else plain
    for prefix, network in PREFIXES.items():
        if layer.startswith(prefix):
            ours = spellings[network].get(layer.removeprefix(prefix).removeprefix(PEFT))
            return LoRAKey(network, ours, role) if ours else None
    for network, names in spellings.items():  # peft does not write the network
        if layer in names:
            return LoRAKey(network, names[layer], role)
    return None


def is_lora(names: Iterable[str]) -> bool:
    """Whether most of the names in a file are those of a LoRA, for whatever model."""
    matches = [
        unsupported_kind(name) is not None or any(suffix.fullmatch(name) for suffix in SUFFIXES) for name in names
    ]
    return sum(matches) > len(matches) / 2


def is_for_other_text_tower(name: str) -> bool:
    """Whether a tensor is for a second or third text tower."""
    return name.startswith(OTHER_TEXT_TOWERS) and not name.startswith(tuple(PREFIXES))


def unsupported_kind(name: str) -> str | None:
    """The kind of adapter that a tensor belongs to, if that is no plain LoRA."""
    return next((kind for kind, pattern in UNSUPPORTED if re.search(pattern, name)), None)


def other_family(names: Iterable[str]) -> str | None:
    """The other family of models that has layers of these names."""
    return next((family for family, pattern in FAMILIES if any(re.search(pattern, name) for name in names)), None)


def spellings_of(unet: UNet, text: TextTower) -> Spellings:
    """All that the layers of these networks may be called."""
    unet_names = [layer_names(unet, UNET, "diffusers"), layer_names(unet, UNET, "original", unet_indices(unet.config))]
    text_names = layer_names(text, TEXT, "transformers")
    of_2023 = {ours: _name_of_2023(foreign) for ours, foreign in text_names.items()}
    return {"unet": _spellings(*unet_names), "text": _spellings(text_names, of_2023)}


def layer_names(network: nn.Module, table: Table, dialect: str, indices: Indices | None = None) -> dict[str, str]:
    """Our name of each layer of a network, and its name in a dialect."""
    ours = [f"{name}.weight" for name, _ in linear_and_conv_layers(network)]
    where = sources(ours, table, dialect, indices)
    return {name.removesuffix(".weight"): source.name.removesuffix(".weight") for name, source in where.items()}


def _name_of_2023(name: str) -> str:
    """A text tower's layer as diffusers named it in the first months of LoRAs: like those of the U-Net."""
    return re.sub(r"\.([qkv])_proj$", r".to_\1", name).replace(".out_proj", ".to_out.0")


def _spellings(*names: Mapping[str, str]) -> dict[str, str]:
    """With dots or, as kohya writes, underscores; with or without the name of the model inside the text encoder."""
    found: dict[str, str] = {}
    for layers in names:
        for ours, foreign in layers.items():
            for name in (foreign, foreign.removeprefix("text_model.")):
                found |= {name: ours, name.replace(".", "_"): ours}
    return found
