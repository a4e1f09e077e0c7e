"""What a file of weights is, by the names of its tensors: one table for all formats, whether they are read here or not.

A new dialect is a file in formats/ and a row here; a kind of single file that is converted, also a row in convert.py.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Literal, NamedTuple

from gradina.errors import WeightsError
from gradina.nn.transformer import Activation
from gradina.weights.remap import wildcards

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", ("cond_stage_model.", "conditioner.")  # in one file

WHOLE = "expected a whole Stable Diffusion 1.x or 2.x checkpoint"
BY_VAE = "give it by --vae (in Python: vae=...) beside a whole checkpoint or model folder"
BY_TINY = "give it by --tiny, with --film or --strip"
FOLDER = "load the whole folder that it belongs to"


class Format(NamedTuple):
    """A kind of file, what to do with one that is given as a checkpoint, and names that its tensors have."""

    what: str
    advice: str
    names: tuple[str, ...]  # one of them is enough; `*` is anything
    kind: Literal["leftover", "other", "component"] = "other"


# The first row that fits says what a file is. Merges leave the names of "leftover" rows in whole checkpoints, where
# they are not read; whole checkpoints have the names of "component" rows, too.
FORMATS = (
    Format("a LoRA adapter", WHOLE, ("*lora_down.*", "*lora_up.*", "*lora_[AB].*", "*lora.down.*", "*hada_w1*",
                                     "*lokr_w*"), "leftover"),
    Format("a textual inversion embedding", WHOLE, ("emb_params", "string_to_param*", "clip_[lg]"), "leftover"),
    Format("a ControlNet", WHOLE, ("control_model.*", "controlnet_*", "*zero_convs.*", "*input_hint_block.*")),
    Format("an IP-Adapter", WHOLE, ("ip_adapter.*", "image_proj.*")),
    Format("a T2I-Adapter", WHOLE, ("adapter.conv_in.*", "adapter.body.*", "body.*.in_conv.*")),
    Format("a motion module (AnimateDiff)", WHOLE, ("*motion_modules.*",)),
    Format("a Stable Diffusion XL checkpoint", WHOLE, ("conditioner.embedders.1.*", "add_embedding.linear_1.*")),
    Format("a Stable Diffusion 3 checkpoint", WHOLE, ("*joint_blocks.*",)),
    Format("a Flux checkpoint", WHOLE, ("*double_blocks.*",)),
    Format("a Stable Video Diffusion checkpoint", WHOLE, ("conditioner.embedders.0.open_clip.*", "*.time_stack.*",
                                                          "*.temporal_transformer_blocks.*")),
    Format("a Zero123 checkpoint", WHOLE, ("cc_projection.*",)),
    Format("a Wan checkpoint", WHOLE, ("*blocks.*.self_attn.norm_q.*", "patch_embedding.weight")),
    Format("a Lumina or Z-Image checkpoint", WHOLE, ("*cap_embedder.*",)),
    Format("a T5 text encoder", WHOLE, ("*.SelfAttention.q.weight",)),
    Format("a Stable Cascade checkpoint", WHOLE, ("clip_txt_mapper.*", "*.channelwise.*")),
    Format("an unCLIP checkpoint or the refiner of Stable Diffusion XL", WHOLE, (f"{UNET}label_emb.*",)),
    Format("an upscaler (ESRGAN)", WHOLE, ("*.rdb1.*", "*.RDB1.*")),
    Format("an autoencoder alone", BY_VAE, (f"{VAE}*", "encoder.down.*"), "component"),
    Format("an autoencoder alone, in the diffusers layout", BY_VAE, ("encoder.down_blocks.*",), "component"),
    Format("a tiny autoencoder (TAESD)", BY_TINY, ("decoder.layers.*", "1.weight"), "component"),
    Format("a U-Net alone, in the diffusers layout", FOLDER, ("down_blocks.*",), "component"),
    Format("a U-Net alone", WHOLE, ("input_blocks.*",), "component"),
    Format("a CLIP model alone", FOLDER, ("text_model.*", "vision_model.*", "embeddings.token*",
                                          "transformer.resblocks.*"), "component"),
    Format("a transformer (another family)", WHOLE, ("transformer_blocks.*", "*adaln_single.*"), "component"),
)  # fmt: skip


class TextEncoderFormat(NamedTuple):
    """A text encoder in a single file: its prefix and dialect, a name that it has, and what that implies."""

    prefix: str
    dialect: str
    token: str
    activation: Activation
    pad: int | None  # id; None: the end-of-text token


TEXT_ENCODERS = (
    TextEncoderFormat("cond_stage_model.transformer.", "transformers", "text_model.embeddings.token_embedding.weight",
                      "quick_gelu", None),
    TextEncoderFormat("cond_stage_model.transformer.", "transformers", "embeddings.token_embedding.weight",
                      "quick_gelu", None),
    TextEncoderFormat("cond_stage_model.model.", "open_clip", "token_embedding.weight", "gelu", 0),
    TextEncoderFormat("conditioner.embedders.0.model.", "open_clip", "token_embedding.weight", "gelu", 0),  # SD-Turbo
)  # fmt: skip

VAE_RESNETS = {  # of an encoder, by level and block; the first of them tells the dialect
    "original": "encoder.down.{}.block.{}.conv1.weight",
    "diffusers": "encoder.down_blocks.{}.resnets.{}.conv1.weight",
}
VAE_PREFIXES = (VAE, "vae.", "")

UNET_INPUTS = {
    5: "depth-conditioned (SD 2 depth)",
    7: "an upscaler (SD x4)",
    8: "instruction-conditioned (InstructPix2Pix)",
}


def check_checkpoint(path: object, names: Iterable[str]) -> None:
    """Raises WeightsError, saying what the file is, unless it has the names of a whole original checkpoint."""
    names = list(names)
    has_unet, has_vae, has_text = (any(n.startswith(prefix) for n in names) for prefix in (UNET, VAE, TEXT))
    whole, component = has_unet and has_vae and has_text, not has_unet and not (has_vae and has_text)
    possible = {"leftover": not whole, "other": True, "component": component}
    if row := find_format(names, [kind for kind, is_possible in possible.items() if is_possible]):
        raise WeightsError(f"{path}: is {row.what}; {row.advice}")
    found = (("U-Net", has_unet), ("autoencoder", has_vae), ("text tower", has_text))
    missing = [what for what, there in found if not there]
    if len(missing) == 3:
        first = ", ".join(names[:3])
        raise WeightsError(f"{path}: is of an unknown kind ({len(names)} tensors, first: {first or 'none'}); {WHOLE}")
    if missing:
        advice = "give one by --vae (in Python: vae=...)" if missing == ["autoencoder"] else WHOLE
        raise WeightsError(f"{path}: has no {' and no '.join(missing)}; {advice}")


def check_unet_inputs(path: object, channels: int, out_channels: int) -> None:
    """Raises WeightsError for a U-Net whose inputs are neither latents nor latents, mask and masked latents."""
    if channels not in (out_channels, 2 * out_channels + 1):
        what = UNET_INPUTS.get(channels, "of an unknown kind")
        raise WeightsError(
            f"{path}: its U-Net takes {channels} channels, so it is {what}; "
            f"expected {out_channels}, or {2 * out_channels + 1} for inpainting"
        )


def find_format(names: Iterable[str], kinds: Container[str] = ("leftover", "other", "component")) -> Format | None:
    """What a file with these names is, of some kinds; None where it is unknown."""
    names = list(names)
    return next((row for row in FORMATS if row.kind in kinds and any(map(wildcards(row.names).fullmatch, names))), None)


def find_text_encoder(path: object, names: Iterable[str]) -> TextEncoderFormat:
    """The text encoder of an original checkpoint. Raises WeightsError."""
    names = set(names)
    found = next((row for row in TEXT_ENCODERS if row.prefix + row.token in names), None)
    if found is None:
        raise WeightsError(f"{path}: has a text tower of an unknown kind; expected CLIP or OpenCLIP")
    return found


def find_vae(names: Iterable[str]) -> tuple[str, str] | None:
    """Prefix and dialect of the autoencoder among these names; None where there is none."""
    names, rows = set(names), [(p, d, p + first.format(0, 0)) for p in VAE_PREFIXES for d, first in VAE_RESNETS.items()]
    return next(((prefix, dialect) for prefix, dialect, name in rows if name in names), None)
