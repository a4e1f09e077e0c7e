"""What a file is, if it is not a Stable Diffusion 1.x or 2.x checkpoint: named, so that its owner knows what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gradina.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]

WHOLE = "expected a whole Stable Diffusion 1.x or 2.x checkpoint"
VAE = "give it by --vae (in Python: vae=...) beside a whole checkpoint or model folder"
TINY = "give it by --tiny, with --film or --strip"
FOLDER = "load the whole folder that it belongs to"

# The first row with a name that fits says what the file is; `*` is anything.
OTHERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # what                                 what to do   names
    ("a LoRA adapter",                        WHOLE,  ("*lora_down.*", "*lora_up.*", "*lora_[AB].*", "*lora.down.*",
                                                       "*hada_w1*", "*lokr_w*")),
    ("a textual inversion embedding",         WHOLE,  ("emb_params", "string_to_param*", "clip_[lg]")),
    ("a ControlNet",                          WHOLE,  ("control_model.*", "controlnet_*", "*zero_convs.*",
                                                       "*input_hint_block.*")),
    ("an IP-Adapter",                         WHOLE,  ("ip_adapter.*", "image_proj.*")),
    ("a T2I-Adapter",                         WHOLE,  ("adapter.conv_in.*", "adapter.body.*", "body.*.in_conv.*")),
    ("a motion module (AnimateDiff)",         WHOLE,  ("*motion_modules.*",)),
    ("a Stable Diffusion XL checkpoint",      WHOLE,  ("conditioner.embedders.1.*", "add_embedding.linear_1.*")),
    ("a Stable Diffusion 3 checkpoint",       WHOLE,  ("*joint_blocks.*",)),
    ("a Flux checkpoint",                     WHOLE,  ("*double_blocks.*",)),
    ("a Stable Video Diffusion checkpoint",   WHOLE,  ("conditioner.embedders.0.open_clip.*", "*.time_stack.*",
                                                       "*.temporal_transformer_blocks.*")),
    ("a Zero123 checkpoint",                  WHOLE,  ("cc_projection.*",)),
    ("a Wan checkpoint",                      WHOLE,  ("*blocks.*.self_attn.norm_q.*", "patch_embedding.weight")),
    ("a Lumina or Z-Image checkpoint",        WHOLE,  ("*cap_embedder.*",)),
    ("a T5 text encoder",                     WHOLE,  ("*.SelfAttention.q.weight",)),
    ("a Stable Cascade checkpoint",           WHOLE,  ("clip_txt_mapper.*", "*.channelwise.*")),
    ("an unCLIP checkpoint or the refiner of Stable Diffusion XL",
                                              WHOLE,  ("model.diffusion_model.label_emb.*",)),
    ("an upscaler (ESRGAN)",                  WHOLE,  ("*.rdb1.*", "*.RDB1.*")),
)  # fmt: skip
ALONE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("an autoencoder alone",                           VAE,    ("first_stage_model.*", "encoder.down.*")),
    ("an autoencoder alone, in the diffusers layout",  VAE,    ("encoder.down_blocks.*",)),
    ("a tiny autoencoder (TAESD)",                     TINY,   ("decoder.layers.*", "1.weight")),
    ("a U-Net alone, in the diffusers layout",         FOLDER, ("down_blocks.*",)),
    ("a U-Net alone",                                  WHOLE,  ("input_blocks.*",)),
    ("a CLIP model alone",                             FOLDER, ("text_model.*", "vision_model.*", "embeddings.token*",
                                                                "transformer.resblocks.*")),
    ("a transformer (another family)",                 WHOLE,  ("transformer_blocks.*", "*adaln_single.*")),
)  # fmt: skip
BESIDE = ("a LoRA adapter", "a textual inversion embedding")  # what merges leave in whole checkpoints, unread
HOMES = ("model.diffusion_model.", "first_stage_model.", ("cond_stage_model.", "conditioner."))  # of the three parts
CHANNELS = {
    5: "depth-conditioned (SD 2 depth)",
    7: "an upscaler (SD x4)",
    8: "instruction-conditioned (InstructPix2Pix)",
}


def refuse_others(path: object, names: Iterable[str]) -> None:
    """Raises WeightsError, saying what the file is, unless it has the names of a whole original checkpoint."""
    names = list(names)
    whole = [any(n.startswith(p) for n in names) for p in HOMES]
    alone = ALONE * (not whole[0] and sum(whole) < 2)
    for what, advice, patterns in OTHERS + alone:
        if _any(names, patterns) and not (all(whole) and what in BESIDE):
            raise WeightsError(f"{path}: is {what}; {advice}")
    lacking = [what for has, what in zip(whole, ("U-Net", "autoencoder", "text tower"), strict=True) if not has]
    if len(lacking) == 3:
        first = ", ".join(names[:3])
        raise WeightsError(f"{path}: is of an unknown kind ({len(names)} tensors, first: {first or 'none'}); {WHOLE}")
    if lacking:
        advice = "give one by --vae (in Python: vae=...)" if lacking == ["autoencoder"] else WHOLE
        raise WeightsError(f"{path}: has no {' and no '.join(lacking)}; {advice}")


def named_as(names: Iterable[str]) -> str:
    """What a file with those names is, if it is no checkpoint of ours; "" if that cannot be told."""
    names = list(names)
    return next((what for what, _, patterns in OTHERS + ALONE if _any(names, patterns)), "")


def foreign(names: Iterable[str]) -> str:
    """The family of a whole checkpoint that is not of ours; "" for ours."""
    names = list(names)
    return next((what for what, _, patterns in OTHERS if what not in BESIDE and _any(names, patterns)), "")


def refuse_channels(path: object, channels: int, out_channels: int) -> None:
    """Raises WeightsError for a U-Net that wants to see more than latents, or latents, mask and masked latents."""
    if channels not in (out_channels, 2 * out_channels + 1):
        what = CHANNELS.get(channels, "of an unknown kind")
        raise WeightsError(
            f"{path}: its U-Net takes {channels} channels, so it is {what}; "
            f"expected {out_channels}, or {2 * out_channels + 1} for inpainting"
        )


def _any(names: Iterable[str], patterns: Iterable[str]) -> bool:
    wild = "|".join(re.escape(p).replace(r"\*", ".*").replace(r"\[", "[").replace(r"\]", "]") for p in patterns)
    known = re.compile(wild)
    return any(known.fullmatch(name) for name in names)
