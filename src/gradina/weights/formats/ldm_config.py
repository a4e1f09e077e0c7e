"""The configs of an original single file: from its shapes, then from its metadata, then by what its U-Net predicts.

Shapes do not tell heads: linear projections mean 64 channels for each head (SD 2), convolutions mean 8 heads (SD 1).
Group norms are taken to have 32 groups where the widths allow it. Files written here say both in their metadata.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from reprlib import repr as shortened
from typing import Any

from torch import Tensor

from gradina.diffusion.schedule import Schedule
from gradina.errors import WeightsError
from gradina.models.clip import TextConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig
from gradina.request import Defaults
from gradina.weights import detect
from gradina.weights.detect import TextEncoderFormat
from gradina.weights.formats import diffusers_configs
from gradina.weights.json_config import Config, config_errors, validated
from gradina.weights.safetensors import Weights

Shapes = Mapping[str, tuple[int, ...]]

METADATA = "gradina"  # the key of the metadata that is written here
# Fields of the configs that no shape tells, by network.
IN_METADATA = {"unet": ("heads", "groups", "size"), "vae": ("groups", "scale"), "text": ("heads", "eos")}

V_BIAS = detect.UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_STD = 0.09  # of that bias; above it ComfyUI takes an SD 2 checkpoint for one that predicts v


class PredictionWarning(UserWarning):
    """A checkpoint does not say what its U-Net predicts, and a guess was made."""


@dataclass(frozen=True)
class Configs:
    """The networks of an original single file."""

    family: str
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    text_format: TextEncoderFormat


@dataclass(frozen=True)
class Metadata:
    """What a file that was written here says of itself; empty and None for all that a file does not say."""

    unet: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None
    schedule: Schedule | None = None
    prediction: str | None = None
    defaults: Defaults | None = None


# Shapes


def configs_from_shapes(weights: Weights) -> Configs:
    """The networks of an original checkpoint; raises WeightsError, saying what else it is, if it is none."""
    path = weights.path
    detect.check_checkpoint(path, weights.tensors)
    text_format = detect.find_text_encoder(path, weights.tensors)
    try:
        unet = _unet_from_shapes(shapes_of(weights.under(detect.UNET)))
        vae = vae_from_shapes(shapes_of(weights.under(detect.VAE)))
        text = _text_from_shapes(shapes_of(weights.under(text_format.prefix)), text_format)
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{path}: is an original checkpoint that lacks {error.args[0]!s}, by which its form is known; "
            "fetch it again, or take another"
        ) from error
    detect.check_unet_inputs(path, unet.channels, unet.out_channels)
    family = ("SD 2.x" if unet.linear else "SD 1.x") + (" inpainting" if unet.channels != unet.out_channels else "")
    return Configs(family, unet, vae, text, text_format)


def _unet_from_shapes(shapes: Shapes) -> UNetConfig:
    downsamplers = sorted(_indices(shapes, r"input_blocks\.(\d+)\.0\.op\.weight"))
    per_level = downsamplers[0] if downsamplers else 1 + max(_indices(shapes, r"input_blocks\.(\d+)\..*"))
    firsts = [1 + i * per_level for i in range(len(downsamplers) + 1)]  # the first block of each level
    widths = tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts)
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    return UNetConfig(
        channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        widths=widths,
        attention=tuple(f"input_blocks.{n}.1.norm.weight" in shapes for n in firsts),
        heads=tuple(max(1, width // 64) if linear else math.gcd(8, width) for width in widths),
        blocks=per_level - 1,
        depth=_length(shapes, "middle_block.1.transformer_blocks.{}.norm1.weight"),
        context=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        linear=linear,
        groups=_groups(widths),
        time="time_embed.0.weight" in shapes,
    )


def vae_from_shapes(shapes: Shapes, dialect: str = "original") -> VAEConfig:
    """The autoencoder with these shapes, by the names of a dialect; raises KeyError or IndexError for a missing one."""
    resnet = detect.VAE_RESNETS[dialect]
    levels = max(1, _length(shapes, resnet.format("{}", 0)))
    widths = tuple(shapes[resnet.format(i, 0)][0] for i in range(levels))
    return VAEConfig(
        channels=shapes["encoder.conv_in.weight"][1],
        latent_channels=shapes["post_quant_conv.weight"][0],
        widths=widths,
        blocks=_length(shapes, resnet.format(0, "{}")),
        groups=_groups(widths),
    )


def _text_from_shapes(shapes: Shapes, text_format: TextEncoderFormat) -> TextConfig:
    """Of a complete OpenCLIP encoder, one with a projection, the last layer is not used: SD 2 reads the penultimate."""
    position, layer, inner = "positional_embedding", "transformer.resblocks.{}.", "mlp.c_fc.weight"
    if text_format.dialect == "transformers":
        model = text_format.token.removesuffix("embeddings.token_embedding.weight")
        position, layer = f"{model}embeddings.position_embedding.weight", model + "encoder.layers.{}."
        inner = "mlp.fc1.weight"
    layers = _length(shapes, layer + inner)
    complete = text_format.dialect == "open_clip" and ("text_projection" in shapes or layers == 24)
    vocabulary, width = shapes[text_format.token]
    return TextConfig(
        vocabulary=vocabulary,
        length=shapes[position][0],
        width=width,
        inner=shapes[layer.format(0) + inner][0],
        layers=layers - complete,
        heads=max(1, width // 64),
        activation=text_format.activation,
        eos=diffusers_configs.eos_id(vocabulary),
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shapes of all tensors by name."""
    return {name: tuple(x.shape) for name, x in tensors.items()}


def _indices(shapes: Shapes, pattern: str) -> set[int]:
    return {int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name))}


def _length(shapes: Shapes, pattern: str) -> int:
    """How many names there are, counted from 0 without a gap."""
    return sum(1 for _ in takewhile(lambda i: pattern.format(i) in shapes, count()))


def _groups(widths: tuple[int, ...]) -> int:
    """The largest number of groups, up to 32, that divides all widths."""
    return max(g for g in range(1, 33) if math.gcd(*widths) % g == 0)


# Metadata


def read_metadata(weights: Weights) -> Metadata:
    """The metadata that was written here; raises WeightsError, naming the file, where it is malformed."""
    with config_errors(weights.path):
        content = json.loads(weights.metadata.get(METADATA, "{}"))
        if not isinstance(content, dict):
            raise WeightsError(f"its metadata is {shortened(content)}, expected an object")
        objects = {name: content[name] for name in (*IN_METADATA, "tokenizer") if name in content}
        for name, value in objects.items():
            if not isinstance(value, dict):
                raise WeightsError(f"{name} in its metadata is {shortened(value)}, expected an object")
        schedule, prediction = None, None
        if "scheduler" in content:
            schedule, prediction = diffusers_configs.schedule_and_prediction(content["scheduler"])
        defaults = diffusers_configs.defaults_from_json(content) if "defaults" in content else None
        return Metadata(**objects, schedule=schedule, prediction=prediction, defaults=defaults)


def with_metadata(config: Config, network: str, metadata: Metadata, weights: Weights) -> Config:
    """The config with the fields that the metadata gives; raises WeightsError where no network can be built of it."""
    given = {key: value for key, value in getattr(metadata, network).items() if key in IN_METADATA[network]}
    given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    with config_errors(weights.path):
        return validated(replace(config, **given))


# Prediction


def stated_prediction(weights: Weights) -> str | None:
    """eps or v, where the ModelSpec metadata or a marker key of a file says it."""
    stated = weights.metadata.get("modelspec.prediction_type", "").lower()
    if stated in ("v", "v_prediction", "epsilon", "eps"):
        return "v" if stated.startswith("v") else "eps"
    return "v" if "v_pred" in weights.tensors else None


def guess_prediction(weights: Weights, configs: Configs) -> str:
    """eps for SD 1 and inpainting; for SD 2 eps or v, as ComfyUI guesses by the spread of one bias, with a warning."""
    if not configs.unet.linear or configs.unet.channels != configs.unet.out_channels:
        return "eps"
    bias = weights.tensors.get(V_BIAS)
    guess = "v" if bias is not None and float(bias.float().std(correction=0)) > V_STD else "eps"
    warnings.warn(
        f"{weights.path}: an {configs.family} file does not say whether its U-Net predicts noise (eps) or velocity "
        f"(v); taking {guess!r}, as its weights suggest; pass prediction='eps' or prediction='v' to be sure",
        PredictionWarning,
        stacklevel=2,
    )
    return guess
