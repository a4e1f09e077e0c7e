"""What LoRA files call a layer: all spellings of the layers that a model has, and what other things files hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from gradina.adapters.inject import linear_and_conv_layers
from gradina.models.clip import TextTower
from gradina.models.unet import UNet
from gradina.weights.key_tables import TEXT, UNET, unet_numbers
from gradina.weights.remap import Numbers, Table, sources

PARTS = {  # how names begin: of diffusers, kohya's scripts, LyCORIS, ComfyUI
    "unet.": "unet", "lora_unet_": "unet", "lycoris_": "unet", "diffusion_model.": "unet",
    "model.diffusion_model.": "unet", "text_encoder.": "text", "lora_te_": "text", "lora_te1_": "text",
    "text_encoders.clip_l.transformer.": "text", "text_encoders.clip_h.transformer.": "text",
}  # fmt: skip
FURTHER = ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3.", "text_encoders.")  # text towers
PEFT = "base_model.model."
ENDINGS = (  # peft's (with or without an adapter's name) and kohya's; diffusers' of 2023, later and earlier
    re.compile(r"(?P<layer>.+)\.lora_(?P<half>A|B|down|up)(\.[^.]+)?\.weight"),
    re.compile(r"(?P<layer>.+)\.lora(_linear_layer)?\.(?P<half>down|up)\.weight"),
    re.compile(r"(?P<layer>.+\.to_(q|k|v|out)_lora)\.(?P<half>down|up)\.weight"),
    re.compile(r"(?P<layer>.+)\.(?P<half>alpha)"),
)
HALVES = {"A": "down", "B": "up"}
KINDS = (  # what is in the names of tensors that are no plain LoRA
    ("LoHa", r"\.hada_"), ("LoKr", r"\.lokr_"), ("OFT", r"oft_|\.oft\."), ("GLoRA", r"\.(a|b)[12]\.weight$|glora"),
    ("layers that have but numbers (cloneofsimo's trainer)", r"^(unet|text_encoder):\d+:"),
    ("DoRA", r"dora_scale|lora_magnitude_vector"), ("LoCon with a middle (CP)", r"\.lora_mid\."),
    ("IA3", r"ia3|\.on_input$"), ("full differences", r"\.(diff|diff_b|set_weight|w_norm|b_norm)$"),
)  # fmt: skip
FAMILIES = (  # whose layers these are
    ("Wan", r"(?<![a-z])blocks[._]\d+[._](self|cross)_attn"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"),
    ("Lumina or Z-Image", r"(?<![a-z])layers[._]\d+[._]attention[._]"),
    ("Flux", r"(double|single)_blocks|single_transformer_blocks"),
    ("Stable Diffusion 3", r"joint_blocks|transformer[._]transformer_blocks"),
    ("Stable Diffusion XL", r"transformer_blocks[._][1-9]|add_embedding|label_emb"),
)

Spellings = Mapping[str, Mapping[str, str]]  # part -> what a layer may be called -> our name of it


@dataclass(frozen=True)
class Place:
    """Where a tensor of a LoRA belongs: part (unet, text), our name of the layer, and half (down, up, alpha)."""

    part: str
    layer: str
    half: str


def place(name: str, spellings: Spellings) -> Place | None:
    """What a name of a file means; None: no layer that is known."""
    match = next(filter(None, (ending.fullmatch(name) for ending in ENDINGS)), None)
    if match is None:
        return None
    half = HALVES.get(match["half"], match["half"])
    layer = match["layer"].removeprefix(PEFT).replace(".processor.", ".")
    plain = re.sub(r"(\.lora(_linear_layer)?|_lora)$", "", layer)
    layer = f"{plain}.0" if plain != layer and plain.endswith(".to_out") else plain
    for head, part in PARTS.items():
        if layer.startswith(head):
            ours = spellings[part].get(layer.removeprefix(head).removeprefix(PEFT))
            return Place(part, ours, half) if ours else None
    for part, names in spellings.items():  # peft says nothing of parts
        if layer in names:
            return Place(part, names[layer], half)
    return None


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with these names is a LoRA, for whatever model, and not one that has some left over."""
    said = [kind_of(name) is not None or any(ending.fullmatch(name) for ending in ENDINGS) for name in names]
    return sum(said) > len(said) / 2


def is_further(name: str) -> bool:
    """Whether a tensor is for a second or third text tower."""
    return name.startswith(FURTHER) and not name.startswith(tuple(PARTS))


def kind_of(name: str) -> str | None:
    """What a tensor is a part of, if that is no plain LoRA."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), None)


def family_of(names: Iterable[str]) -> str | None:
    """The other family of models whose layers these are."""
    return next((what for what, pattern in FAMILIES if any(re.search(pattern, name) for name in names)), None)


def spellings_of(unet: UNet, text: TextTower) -> Spellings:
    """All that the layers of these networks may be called."""
    numbers = unet_numbers(unet.config)
    drawing = [layers_named(unet, UNET, "diffusers"), layers_named(unet, UNET, "original", numbers)]
    reading = layers_named(text, TEXT, "transformers")
    of_2023 = {ours: _of_2023(foreign) for ours, foreign in reading.items()}
    return {"unet": _spelt(*drawing), "text": _spelt(reading, of_2023)}


def layers_named(network: nn.Module, table: Table, dialect: str, numbers: Numbers | None = None) -> dict[str, str]:
    """What the layers of a network are called in a dialect."""
    ours = [f"{name}.weight" for name, _ in linear_and_conv_layers(network)]
    where = sources(ours, table, dialect, numbers)
    return {name.removesuffix(".weight"): source.name.removesuffix(".weight") for name, source in where.items()}


def _of_2023(name: str) -> str:
    """A text tower's layer as diffusers called it in the first months of LoRAs: as those of the U-Net."""
    return re.sub(r"\.([qkv])_proj$", r".to_\1", name).replace(".out_proj", ".to_out.0")


def _spelt(*named: Mapping[str, str]) -> dict[str, str]:
    """With dots or, as kohya writes, underscores; with or without the name of the model inside the text encoder."""
    found: dict[str, str] = {}
    for names in named:
        for ours, foreign in names.items():
            for name in (foreign, foreign.removeprefix("text_model.")):
                found |= {name: ours, name.replace(".", "_"): ours}
    return found
