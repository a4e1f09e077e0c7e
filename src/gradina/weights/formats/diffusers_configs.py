"""The config files of diffusers and transformers <-> our configs; a setting that is not supported is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from reprlib import repr as shortened
from typing import Any

import torch

from gradina.diffusion.betas import BetaLaw, zero_terminal_snr
from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.schedule import Schedule
from gradina.errors import WeightsError
from gradina.models.clip import TextConfig
from gradina.models.clip_vision import ConvConfig, VisionConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig
from gradina.nn.transformer import ACTIVATIONS
from gradina.request import Defaults, Request
from gradina.weights.json_config import Json, check_fixed, check_int, check_number, validated

# Settings that our networks have built in; a file may leave them out, and must not give them another value.
UNET_FIXED: Json = {
    "act_fn": "silu", "addition_embed_type": None, "attention_type": "default", "center_input_sample": False,
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_norm": None, "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "num_class_embeds": None,
    "only_cross_attention": False, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None,
}  # fmt: skip
VAE_FIXED: Json = {
    "act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
    "shift_factor": None, "use_post_quant_conv": True, "use_quant_conv": True,
}  # fmt: skip
CLIP_FIXED: Json = {"layer_norm_eps": 1e-5}

# Fields of the configs of CLIP's towers, and their keys in config.json.
CLIP_KEYS = {
    "width": "hidden_size", "inner": "intermediate_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "activation": "hidden_act",
}  # fmt: skip
TEXT_KEYS = {"vocabulary": "vocab_size", "length": "max_position_embeddings", **CLIP_KEYS}
VISION_KEYS = {"size": "image_size", "patch": "patch_size", "channels": "num_channels", **CLIP_KEYS}
VISION_DEFAULTS = {  # of transformers' CLIPVisionConfig
    "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu",
}  # fmt: skip
CONV_TOWER = "gradina_conv_vision"  # our own model type, for ConvConfig

HAS_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}


def unet_from_json(json: Json, time: bool = True) -> UNetConfig:
    """The U-Net that unet/config.json describes; `attention_head_dim` counts heads there, for historical reasons."""
    check_fixed("U-Net", json, UNET_FIXED)
    widths = tuple(json["block_out_channels"])
    down, up = json["down_block_types"], json["up_block_types"]
    attention = tuple(_one_of("down_block_types", kind, HAS_ATTENTION) for kind in down)
    if tuple(_one_of("up_block_types", kind, HAS_ATTENTION) for kind in reversed(up)) != attention:
        raise WeightsError(f"U-Net config: up_block_types is {shortened(up)}, expected the mirror of {shortened(down)}")
    config = UNetConfig(
        channels=json["in_channels"],
        out_channels=json["out_channels"],
        widths=widths,
        attention=attention,
        heads=_per_level(
            "attention_head_dim", json.get("num_attention_heads") or json.get("attention_head_dim", 8), widths
        ),
        blocks=_one_for_all("layers_per_block", json.get("layers_per_block", 2)),
        depth=_one_for_all("transformer_layers_per_block", json.get("transformer_layers_per_block", 1)),
        context=_one_for_all("cross_attention_dim", json.get("cross_attention_dim", 1280)),
        linear=json.get("use_linear_projection", False),
        groups=json.get("norm_num_groups", 32),
        time=time,
        size=_size(json),
    )
    return validated(config)


def unet_to_json(c: UNetConfig) -> dict[str, Any]:
    """unet/config.json for diffusers."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": c.size,
        "in_channels": c.channels,
        "out_channels": c.out_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c.attention)],
        "block_out_channels": list(c.widths),
        "attention_head_dim": c.heads[0] if len(set(c.heads)) == 1 else list(c.heads),
        "layers_per_block": c.blocks,
        "transformer_layers_per_block": c.depth,
        "cross_attention_dim": c.context,
        "use_linear_projection": c.linear,
        "norm_num_groups": c.groups,
        **{k: UNET_FIXED[k] for k in ("act_fn", "flip_sin_to_cos", "freq_shift", "norm_eps", "downsample_padding")},
    }


def vae_from_json(json: Json) -> VAEConfig:
    """The autoencoder that vae/config.json describes."""
    check_fixed("autoencoder", json, VAE_FIXED)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if set(json.get(key, [kind])) != {kind}:
            raise WeightsError(f"autoencoder config: {key} is {shortened(json[key])}, expected only {kind}")
    config = VAEConfig(
        channels=json.get("in_channels", 3),
        latent_channels=json.get("latent_channels", 4),
        widths=tuple(json["block_out_channels"]),
        blocks=json.get("layers_per_block", 1),
        groups=json.get("norm_num_groups", 32),
        scale=json.get("scaling_factor") or 0.18215,
    )
    return validated(config)


def vae_to_json(c: VAEConfig, size: int) -> dict[str, Any]:
    """vae/config.json for diffusers; `size` in pixels."""
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": size,
        "in_channels": c.channels,
        "out_channels": c.channels,
        "latent_channels": c.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(c.widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(c.widths),
        "block_out_channels": list(c.widths),
        "layers_per_block": c.blocks,
        "norm_num_groups": c.groups,
        "scaling_factor": c.scale,
        "act_fn": "silu",
    }


def text_from_json(json: Json, projection: int | None = None) -> TextConfig:
    """The text tower that text_encoder/config.json describes; `projection` is known from the weights alone."""
    given = {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", **json}
    fields, eos = _clip_fields("text tower", given, TEXT_KEYS), json.get("eos_token_id")
    eos = eos_id(fields["vocabulary"]) if eos in (None, 2) else eos  # older files say 2 and mean the highest id
    return validated(TextConfig(**fields, projection=projection, eos=eos))


def text_to_json(c: TextConfig) -> dict[str, Any]:
    """text_encoder/config.json for transformers; the projection is not part of it."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{key: getattr(c, field) for field, key in TEXT_KEYS.items()},
        "projection_dim": c.projection or c.width,
        **CLIP_FIXED,
        "attention_dropout": 0.0,
        "bos_token_id": c.eos - 1,
        "eos_token_id": c.eos,
        "pad_token_id": c.eos,
    }


def vision_from_json(json: Json, projection: int) -> VisionConfig | ConvConfig:
    """The image tower that a CLIPVisionConfig describes, or one of convolutions, as `vision_to_json` writes it."""
    if json.get("model_type") == CONV_TOWER:
        size, channels, widths = json["image_size"], json["num_channels"], tuple(json["widths"])
        return validated(ConvConfig(size=size, channels=channels, widths=widths, projection=projection))
    fields = _clip_fields("image tower", {**VISION_DEFAULTS, **json}, VISION_KEYS)
    return validated(VisionConfig(**fields, projection=projection))


def vision_to_json(c: VisionConfig | ConvConfig) -> dict[str, Any]:
    """The CLIPVisionConfig of an image tower; for one of convolutions, what takes its place."""
    if isinstance(c, ConvConfig):
        sizes = {"image_size": c.size, "num_channels": c.channels, "widths": c.widths, "projection_dim": c.projection}
        return {"model_type": CONV_TOWER, **sizes}
    return {
        "model_type": "clip_vision_model",
        **{key: getattr(c, field) for field, key in VISION_KEYS.items()},
        "projection_dim": c.projection,
        **CLIP_FIXED,
        "attention_dropout": 0.0,
    }


def _clip_fields(network: str, json: Json, keys: Mapping[str, str]) -> dict[str, Any]:
    check_fixed(network, json, CLIP_FIXED)
    fields = {field: json[key] for field, key in keys.items()}
    if fields["activation"] not in ACTIVATIONS:
        raise WeightsError(
            f"text or image tower config: hidden_act is {shortened(fields['activation'])} "
            f"(choices: {', '.join(ACTIVATIONS)})"
        )
    return fields


def eos_id(vocabulary: int) -> int:
    """The id of the end-of-text token in a vocabulary of that size: CLIP's, also with added tokens; else the last."""
    return 49407 if vocabulary >= 49408 else vocabulary - 1


def defaults_from_json(json: Json) -> Defaults:
    """The defaults of a request, from gradina.json; raises RequestError for values that no request may have."""
    given = json["defaults"]
    Request(**given)
    return Defaults(**{name: value for name, value in given.items() if value is not None})


def schedule_from_config(config: Json) -> Schedule:
    """The schedule of a scheduler_config.json, with diffusers' defaults. Raises WeightsError for unknown betas."""
    known = {
        "steps_offset": config.get("steps_offset", 0),
        "set_alpha_to_one": config.get("set_alpha_to_one", config.get("_class_name") != "PNDMScheduler"),
        "timestep_spacing": config.get("timestep_spacing", "leading"),
    }
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        zero_snr = config.get("rescale_betas_zero_snr", False)
        return Schedule.from_betas(zero_terminal_snr(betas) if zero_snr else betas, **known)
    given = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, **config}
    law = BetaLaw(**{name: given[name] for name in BetaLaw.__dataclass_fields__ if name in given})
    return Schedule.from_betas(law.betas(), law=law, **known)


def schedule_and_prediction(json: Json) -> tuple[Schedule, str | None]:
    """The schedule of a scheduler_config.json as diffusers' pipelines correct it, and eps, v, x0 or None.

    Those pipelines take 1 for every other `steps_offset`, which files of before diffusers 0.4 lack, and never clip.
    """
    given = {name: value for name, value in json.items() if value is not None}
    if str(kind := given.get("_class_name", "")).startswith(("FlowMatch", "EDM")):
        raise WeightsError(f"scheduler config: is a {str(kind)[:80]}, whose U-Nets are not supported")
    check_int("num_train_timesteps", given.get("num_train_timesteps", 1000), 2, 100_000)
    for name in ("beta_start", "beta_end"):
        check_number(name, given.get(name, 0.01), 0, 1)
    if "trained_betas" in given:
        check_int("the length of trained_betas", len(given["trained_betas"]), 2, 100_000)
        for beta in given["trained_betas"]:
            check_number("trained_betas", beta, 0, 1)
    prediction = given.get("prediction_type")
    return schedule_from_config({**given, "steps_offset": 1}), prediction and prediction_named(prediction).name


def schedule_to_config(schedule: Schedule, prediction: str) -> dict[str, Any]:
    """scheduler_config.json for a schedule and a prediction (eps, v, x0); `schedule_from_config` reads it back."""
    alphas_bar = schedule.alphas_bar
    betas = 1 - alphas_bar / torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
    law = schedule.law or BetaLaw("linear")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(betas),
        "beta_start": law.beta_start,
        "beta_end": law.beta_end,
        "beta_schedule": law.beta_schedule,
        "trained_betas": None if schedule.law else betas.tolist(),
        "rescale_betas_zero_snr": law.rescale_betas_zero_snr,
        "prediction_type": prediction_named(prediction).diffusers,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "set_alpha_to_one": schedule.set_alpha_to_one,
        "clip_sample": False,
        "skip_prk_steps": True,
    }


def _size(json: Json) -> int:
    """The side of the latents that a U-Net was trained on; the 32 of files before diffusers 0.9 means 64, as there."""
    size = _one_for_all("sample_size", json.get("sample_size") or 64)
    version = re.match(r"(\d+)\.(\d+)", str(json.get("_diffusers_version", "")))
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    return 64 if old and isinstance(json.get("sample_size"), int) and size < 64 else size


def _one_of(key: str, kind: str, kinds: Mapping[str, bool]) -> bool:
    if kind not in kinds:
        raise WeightsError(
            f"U-Net config: {key} has {shortened(kind)}, which is not supported (choices: {', '.join(kinds)})"
        )
    return kinds[kind]


def _per_level(key: str, value: int | list[int], levels: tuple[int, ...]) -> tuple[int, ...]:
    """One entry for each level, from one number for all or a list."""
    entries = (value,) * len(levels) if isinstance(value, int) else tuple(value)
    if len(entries) != len(levels):
        raise WeightsError(
            f"U-Net config: {key} is {shortened(value)}, expected one number, or one for each of {shortened(levels)}"
        )
    return entries


def _one_for_all(key: str, value: int | list[int]) -> int:
    """One number, which a list may repeat for all levels."""
    if isinstance(value, list) and len(set(value)) == 1:
        return value[0]
    if not isinstance(value, int):
        raise WeightsError(f"U-Net config: {key} is {shortened(value)}, expected the same number for all levels")
    return value
