"""What every parameter is called: here, in diffusers and transformers folders, and in original single files.

One row for each layer; its `.weight` and `.bias` follow by themselves. `{i}` is an index that stays, other names are
indices that `unet_indices` and `vae_indices` compute; ` | rule` names a change of values (`remap.RULES`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from gradina.models.taesd import TinyConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig
from gradina.weights.remap import Indices, Rows, Table, within

UNET_RES: Rows = (
    ("norm1", "norm1",         "in_layers.0"),
    ("conv1", "conv1",         "in_layers.2"),
    ("time",  "time_emb_proj", "emb_layers.1"),
    ("norm2", "norm2",         "out_layers.0"),
    ("conv2", "conv2",         "out_layers.3"),
    ("skip",  "conv_shortcut", "skip_connection"),
)  # fmt: skip

_TRANSFORMER = (
    ("norm",                    "norm"),
    ("proj_in",                 "proj_in"),
    ("blocks.{k}.norm1",          "transformer_blocks.{k}.norm1"),
    ("blocks.{k}.self_attn.q",    "transformer_blocks.{k}.attn1.to_q"),
    ("blocks.{k}.self_attn.k",    "transformer_blocks.{k}.attn1.to_k"),
    ("blocks.{k}.self_attn.v",    "transformer_blocks.{k}.attn1.to_v"),
    ("blocks.{k}.self_attn.out",  "transformer_blocks.{k}.attn1.to_out.0"),
    ("blocks.{k}.norm2",          "transformer_blocks.{k}.norm2"),
    ("blocks.{k}.cross_attn.q",   "transformer_blocks.{k}.attn2.to_q"),
    ("blocks.{k}.cross_attn.k",   "transformer_blocks.{k}.attn2.to_k"),
    ("blocks.{k}.cross_attn.v",   "transformer_blocks.{k}.attn2.to_v"),
    ("blocks.{k}.cross_attn.out", "transformer_blocks.{k}.attn2.to_out.0"),
    ("blocks.{k}.norm3",          "transformer_blocks.{k}.norm3"),
    ("blocks.{k}.ff.proj_in",     "transformer_blocks.{k}.ff.net.0.proj"),
    ("blocks.{k}.ff.proj_out",    "transformer_blocks.{k}.ff.net.2"),
    ("proj_out",                "proj_out"),
)  # fmt: skip
UNET_ATTN: Rows = tuple((ours, foreign, foreign) for ours, foreign in _TRANSFORMER)  # both dialects agree here

UNET = Table(
    ("ours", "diffusers", "original"),
    (
        ("time.proj_in",         "time_embedding.linear_1",             "time_embed.0"),
        ("time.proj_out",        "time_embedding.linear_2",             "time_embed.2"),
        ("conv_in",              "conv_in",                             "input_blocks.0.0"),
        *within(UNET_RES,  "down.{i}.res.{j}",  "down_blocks.{i}.resnets.{j}",    "input_blocks.{down}.0"),
        *within(UNET_ATTN, "down.{i}.attn.{j}", "down_blocks.{i}.attentions.{j}", "input_blocks.{down}.1"),
        ("down.{i}.shrink.conv", "down_blocks.{i}.downsamplers.0.conv", "input_blocks.{shrink}.0.op"),
        *within(UNET_RES,  "mid.res1",          "mid_block.resnets.0",            "middle_block.0"),
        *within(UNET_ATTN, "mid.attn",          "mid_block.attentions.0",         "middle_block.1"),
        *within(UNET_RES,  "mid.res2",          "mid_block.resnets.1",            "middle_block.2"),
        *within(UNET_RES,  "up.{i}.res.{j}",    "up_blocks.{i}.resnets.{j}",      "output_blocks.{up}.0"),
        *within(UNET_ATTN, "up.{i}.attn.{j}",   "up_blocks.{i}.attentions.{j}",   "output_blocks.{up}.1"),
        ("up.{i}.grow.conv",     "up_blocks.{i}.upsamplers.0.conv",     "output_blocks.{grow}.{after}.conv"),
        ("norm",                 "conv_norm_out",                       "out.0"),
        ("conv_out",             "conv_out",                            "out.2"),
    ),
)  # fmt: skip


def unet_indices(config: UNetConfig) -> Indices:
    """The original counts blocks through all levels; an upsampler comes after the attention if there is one."""
    blocks, last = config.blocks, len(config.widths) - 1
    return {
        "down":   lambda at: 1 + at["i"] * (blocks + 1) + at["j"],
        "shrink": lambda at: (at["i"] + 1) * (blocks + 1),
        "up":     lambda at: at["i"] * (blocks + 1) + at["j"],
        "grow":   lambda at: at["i"] * (blocks + 1) + blocks,
        "after":  lambda at: 2 if config.attention[last - at["i"]] else 1,
    }  # fmt: skip


VAE_RES: Rows = (
    ("norm1", "norm1",         "norm1"),
    ("conv1", "conv1",         "conv1"),
    ("norm2", "norm2",         "norm2"),
    ("conv2", "conv2",         "conv2"),
    ("skip",  "conv_shortcut", "nin_shortcut"),
)  # fmt: skip

VAE_MID: Rows = (
    *within(VAE_RES, "res1", "resnets.0", "block_1"),
    ("norm",     "attentions.0.group_norm",      "attn_1.norm"),
    ("attn.q",   "attentions.0.to_q | flat",     "attn_1.q | 1x1"),
    ("attn.k",   "attentions.0.to_k | flat",     "attn_1.k | 1x1"),
    ("attn.v",   "attentions.0.to_v | flat",     "attn_1.v | 1x1"),
    ("attn.out", "attentions.0.to_out.0 | flat", "attn_1.proj_out | 1x1"),
    *within(VAE_RES, "res2", "resnets.1", "block_2"),
)  # fmt: skip

# The four projections of that attention: in original files, in diffusers, and there before 0.18. Files of either layout
# have any of them, as converters mixed them.
ATTENTION_NAMES: dict[str, tuple[str, ...]] = {
    "original":  ("q", "k", "v", "proj_out"),
    "diffusers": ("to_q", "to_k", "to_v", "to_out.0"),
    "older":     ("query", "key", "value", "proj_attn"),
}  # fmt: skip
VAE_ATTENTION = re.compile(r"(.*\.(?:attentions\.0|attn_1)\.)(.+)(\.(?:weight|bias))")


def _coder(side: str, block: str, sampler: str, original: str, resample: str) -> Rows:
    """One half of the autoencoder; the two halves differ in what their blocks are called and numbered."""
    stage, blocks = f"{side}.stages.{{i}}", f"{side}.{block}.{{i}}"
    return (
        (f"{side}.conv_in",        f"{side}.conv_in",            f"{side}.conv_in"),
        *within(VAE_RES, f"{stage}.res.{{j}}", f"{blocks}.resnets.{{j}}", f"{side}.{original}.block.{{j}}"),
        (f"{stage}.resample.conv", f"{blocks}.{sampler}.0.conv", f"{side}.{original}.{resample}.conv"),
        *within(VAE_MID, f"{side}.mid", f"{side}.mid_block", f"{side}.mid"),
        (f"{side}.norm",           f"{side}.conv_norm_out",      f"{side}.norm_out"),
        (f"{side}.conv_out",       f"{side}.conv_out",           f"{side}.conv_out"),
    )  # fmt: skip


VAE = Table(
    ("ours", "diffusers", "original"),
    (
        *_coder("encoder", "down_blocks", "downsamplers", "down.{i}", "downsample"),
        *_coder("decoder", "up_blocks", "upsamplers", "up.{reverse}", "upsample"),
        ("quant",      "quant_conv",      "quant_conv"),
        ("post_quant", "post_quant_conv", "post_quant_conv"),
    ),
)  # fmt: skip


def vae_indices(config: VAEConfig) -> Indices:
    """The original counts the decoder's blocks from the finest resolution, we and diffusers in order of use."""
    return {"reverse": lambda at: len(config.widths) - 1 - at["i"]}


TAESD = Table(
    ("ours", "diffusers", "original"),
    (
        ("conv_in",                         "decoder.layers.{first}",               "{first}"),
        ("stages.{i}.blocks.{j}.convs.{k}", "decoder.layers.{block}.conv.{twice}",  "{block}.conv.{twice}"),
        ("stages.{i}.grow.conv",            "decoder.layers.{grow}",                "{grow}"),
        ("conv_out",                        "decoder.layers.{last}",                "{last}"),
    ),
)  # fmt: skip


def taesd_indices(config: TinyConfig, first: int) -> Indices:
    """Both count all layers, activations and upsampling included; layer `first` is the first convolution."""

    def block(i: int, j: int) -> int:
        return first + 2 + sum(config.blocks[:i]) + 2 * i + j

    return {
        "first": lambda at: first,
        "block": lambda at: block(at["i"], at["j"]),
        "twice": lambda at: 2 * at["k"],
        "grow":  lambda at: block(at["i"], config.blocks[at["i"]] + 1),
        "last":  lambda at: block(len(config.blocks) - 1, config.blocks[-1]),
    }  # fmt: skip


CLIP_BLOCK: Rows = (
    ("norm1",         "layer_norm1",        "ln_1"),
    ("attn.q.weight", "self_attn.q_proj.weight", "attn.in_proj_weight | first"),
    ("attn.k.weight", "self_attn.k_proj.weight", "attn.in_proj_weight | second"),
    ("attn.v.weight", "self_attn.v_proj.weight", "attn.in_proj_weight | third"),
    ("attn.q.bias",   "self_attn.q_proj.bias",   "attn.in_proj_bias | first"),
    ("attn.k.bias",   "self_attn.k_proj.bias",   "attn.in_proj_bias | second"),
    ("attn.v.bias",   "self_attn.v_proj.bias",   "attn.in_proj_bias | third"),
    ("attn.out",      "self_attn.out_proj", "attn.out_proj"),
    ("norm2",         "layer_norm2",        "ln_2"),
    ("proj_in",       "mlp.fc1",            "mlp.c_fc"),
    ("proj_out",      "mlp.fc2",            "mlp.c_proj"),
)  # fmt: skip

TEXT = Table(
    ("ours", "transformers", "open_clip"),
    (
        ("token",             "text_model.embeddings.token_embedding",           "token_embedding"),
        ("position.weight",   "text_model.embeddings.position_embedding.weight", "positional_embedding"),
        *within(CLIP_BLOCK, "blocks.{i}", "text_model.encoder.layers.{i}", "transformer.resblocks.{i}"),
        ("norm",              "text_model.final_layer_norm",                     "ln_final"),
        ("projection.weight", "text_projection.weight",                          "text_projection | transpose"),
    ),
)  # fmt: skip

VISION = Table(
    ("ours", "transformers", "open_clip"),
    (
        ("cls",               "vision_model.embeddings.class_embedding",           "visual.class_embedding"),
        ("patch",             "vision_model.embeddings.patch_embedding",           "visual.conv1"),
        ("position.weight",   "vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("norm_in",           "vision_model.pre_layrnorm",                         "visual.ln_pre"),
        *within(CLIP_BLOCK, "blocks.{i}", "vision_model.encoder.layers.{i}", "visual.transformer.resblocks.{i}"),
        ("norm",              "vision_model.post_layernorm",                       "visual.ln_post"),
        ("projection.weight", "visual_projection.weight",                          "visual.proj | transpose"),
    ),
)  # fmt: skip

PAIR = Table(
    ("ours", "transformers", "open_clip"),
    (
        *((f"text.{ours}", *foreign) for ours, *foreign in TEXT.rows),
        *((f"vision.{ours}", *foreign) for ours, *foreign in VISION.rows),
        ("logit_scale", "logit_scale", "logit_scale"),
    ),
)

CONV_PAIR = Table(  # with an image tower of convolutions, which transformers does not have
    ("ours", "transformers"),
    (
        *((f"text.{ours}", theirs) for ours, theirs, _ in TEXT.rows),
        ("vision.convs.{i}", "vision_model.convs.{i}"),
        ("vision.norms.{i}", "vision_model.norms.{i}"),
        ("vision.projection", "visual_projection"),
        ("logit_scale", "logit_scale"),
    ),
)

# Tensors of files that no network here needs, by network and outside of them; `*` is anything.
DROPPED: dict[str, tuple[str, ...]] = {
    "text": ("*embeddings.position_ids",  # 0, 1, 2, ...: a buffer of older transformers
             "attn_mask",                 # the causal mask: a buffer of open_clip
             "logit_scale", "text_projection", "text_projection.weight"),  # for image embeddings
    "vae": ("loss.*", "model_ema.*"),     # of its training
    "unet": (),
    "outside": ("model_ema.*",            # a second, averaged copy of the U-Net
                "betas", "alphas_cumprod*", "sqrt_*", "log_one_minus_*", "posterior_*", "lvlb_weights", "logvar",
                "v_pred", "ztsnr", "scale_factor", "denoiser.sigmas",
                "cond_stage_model.logit_scale", "cond_stage_model.text_projection", "cond_stage_model.*position_ids"),
}  # fmt: skip


def add_text_model(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names of a text tower with the prefix "text_model.", which transformers 5 and some files leave out."""
    if "embeddings.token_embedding.weight" not in tensors:
        return tensors
    return {n if n.startswith("text_projection") else f"text_model.{n}": x for n, x in tensors.items()}


def rename_vae_attention(dialect: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An autoencoder's names with its attention as that dialect has it; a name that is there stays."""
    own = ATTENTION_NAMES[dialect]
    names = {name: own[i] for row in ATTENTION_NAMES.values() for i, name in enumerate(row)}

    def renamed(name: str) -> str:
        found = VAE_ATTENTION.fullmatch(name)
        new = found[1] + names.get(found[2], found[2]) + found[3] if found else name
        return name if new in tensors else new

    return {renamed(name): x for name, x in tensors.items()}
