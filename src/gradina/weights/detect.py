"""What networks an original single file holds, read off the shapes of its tensors; and what shapes cannot say.

Heads leave no trace: linear projections mean 64 channels for each head (SD 2), convolutions mean 8 heads (SD 1).
Group norms are taken to have 32 groups where the widths allow it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile

from torch import Tensor

from gradina.errors import WeightsError
from gradina.models.clip import Activation, TextConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig
from gradina.weights.formats.diffusers_configs import end_of_text
from gradina.weights.formats.unsupported import Shapes, refuse_channels, refuse_others
from gradina.weights.safetensors import Weights

UNET, VAE = "model.diffusion_model.", "first_stage_model."
VAE_BLOCKS = {
    "original": "encoder.down.{}.block.{}.conv1.weight",
    "diffusers": "encoder.down_blocks.{}.resnets.{}.conv1.weight",
}
V_BIAS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09  # of that bias; above it ComfyUI takes an SD 2 checkpoint for one of velocities


class PredictionWarning(UserWarning):
    """A checkpoint does not say what its U-Net predicts, and a guess was made."""


@dataclass(frozen=True)
class TextHome:
    """Where a text tower lies in a file, in which dialect, and what that implies."""

    prefix: str
    dialect: str
    token: str
    activation: Activation
    pad: int | None  # id; None: the end-of-text token


HOMES = (
    TextHome("cond_stage_model.transformer.", "transformers", "text_model.embeddings.token_embedding.weight",
             "quick_gelu", None),
    TextHome("cond_stage_model.transformer.", "transformers", "embeddings.token_embedding.weight", "quick_gelu", None),
    TextHome("cond_stage_model.model.", "open_clip", "token_embedding.weight", "gelu", 0),
    TextHome("conditioner.embedders.0.model.", "open_clip", "token_embedding.weight", "gelu", 0),  # as SD-Turbo has it
)  # fmt: skip


@dataclass(frozen=True)
class Detected:
    """What an original single file holds."""

    family: str
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    home: TextHome


def detect(weights: Weights) -> Detected:
    """The networks of an original checkpoint; raises WeightsError, saying what else it is, if it is none."""
    path, shapes = weights.path, {name: tuple(x.shape) for name, x in weights.tensors.items()}
    refuse_others(path, shapes)
    home = next((h for h in HOMES if h.prefix + h.token in shapes), None)
    if home is None:
        raise WeightsError(f"{path}: has a text tower of an unknown kind; expected CLIP or OpenCLIP")
    try:
        unet = unet_of(_under(shapes, UNET))
        vae = vae_of(_under(shapes, VAE))
        text = text_of(_under(shapes, home.prefix), home)
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{path}: is an original checkpoint that lacks {error.args[0]!s}, by which its form is known; "
            "fetch it again, or take another"
        ) from error
    refuse_channels(path, unet.channels, unet.out_channels)
    family = ("SD 2.x" if unet.linear else "SD 1.x") + (" inpainting" if unet.channels != unet.out_channels else "")
    return Detected(family, unet, vae, text, home)


def unet_of(shapes: Shapes) -> UNetConfig:
    """The U-Net with these shapes, by original names."""
    halvings = sorted(_numbers(shapes, r"input_blocks\.(\d+)\.0\.op\.weight"))
    each = halvings[0] if halvings else 1 + max(_numbers(shapes, r"input_blocks\.(\d+)\..*"))
    firsts = [1 + i * each for i in range(len(halvings) + 1)]  # the first block of each resolution
    widths = tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts)
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    return UNetConfig(
        channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        widths=widths,
        attention=tuple(f"input_blocks.{n}.1.norm.weight" in shapes for n in firsts),
        heads=tuple(max(1, width // 64) if linear else math.gcd(8, width) for width in widths),
        blocks=each - 1,
        depth=_length(shapes, "middle_block.1.transformer_blocks.{}.norm1.weight"),
        context=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        linear=linear,
        groups=_groups(widths),
        time="time_embed.0.weight" in shapes,
    )


def vae_of(shapes: Shapes, dialect: str = "original") -> VAEConfig:
    """The autoencoder with these shapes, by names of a dialect of `tables.VAE`."""
    block = VAE_BLOCKS[dialect]
    levels = max(1, _length(shapes, block.format("{}", 0)))
    widths = tuple(shapes[block.format(i, 0)][0] for i in range(levels))
    return VAEConfig(
        channels=shapes["encoder.conv_in.weight"][1],
        latent_channels=shapes["post_quant_conv.weight"][0],
        widths=widths,
        blocks=_length(shapes, block.format(0, "{}")),
        groups=_groups(widths),
    )


def text_of(shapes: Shapes, home: TextHome) -> TextConfig:
    """The text tower with these shapes; of a whole OpenCLIP tower the last layer is left out (SD 2 reads the
    penultimate one), and it is whole if its projection is there."""
    if home.dialect == "open_clip":
        position, block, inner = "positional_embedding", "transformer.resblocks.{}.", "mlp.c_fc.weight"
    else:
        body = home.token.removesuffix("embeddings.token_embedding.weight")
        position, block, inner = (
            f"{body}embeddings.position_embedding.weight",
            body + "encoder.layers.{}.",
            "mlp.fc1.weight",
        )
    layers = _length(shapes, block + inner)
    whole = home.dialect == "open_clip" and ("text_projection" in shapes or layers == 24)
    vocabulary, width = shapes[home.token]
    return TextConfig(
        vocabulary=vocabulary,
        length=shapes[position][0],
        width=width,
        inner=shapes[block.format(0) + inner][0],
        layers=layers - whole,
        heads=max(1, width // 64),
        activation=home.activation,
        eos=end_of_text(vocabulary),
    )


def said_of(weights: Weights) -> str | None:
    """eps or v, where metadata or a marker key of an original file says it."""
    said = weights.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "epsilon", "eps"):
        return "v" if said.startswith("v") else "eps"
    return "v" if "v_pred" in weights.tensors else None


def guessed(weights: Weights, found: Detected) -> str:
    """eps or v, for a file that does not say: the way of its family; warns where that is a guess.

    SD 2.x files come in both kinds; the guess is ComfyUI's, by the spread of one bias.
    """
    if not found.unet.linear or found.unet.channels != found.unet.out_channels:
        return "eps"
    guess = "v" if _spread(weights.tensors) > V_SPREAD else "eps"
    warnings.warn(
        f"{weights.path}: an {found.family} file does not say whether its U-Net predicts noise (eps) or velocity (v); "
        f"taking {guess!r}, as its weights suggest; pass prediction='eps' or prediction='v' to be sure",
        PredictionWarning,
        stacklevel=2,
    )
    return guess


def _spread(tensors: Mapping[str, Tensor]) -> float:
    return float(tensors[V_BIAS].float().std(correction=0)) if V_BIAS in tensors else 0.0


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    return {int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name))}


def _length(shapes: Shapes, pattern: str) -> int:
    """How many names there are, counted from 0 without a gap."""
    return sum(1 for _ in takewhile(lambda i: pattern.format(i) in shapes, count()))


def _groups(widths: tuple[int, ...]) -> int:
    """The most groups, up to 32, that divide all widths."""
    return max(g for g in range(1, 33) if math.gcd(*widths) % g == 0)
