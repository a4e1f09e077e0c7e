"""Every parameter of the real networks has one name in each dialect, and every name there is taken once."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVAE
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionModelWithProjection

from gradina.models.clip import TextConfig, TextTower
from gradina.models.clip_vision import CLIP, VisionConfig, VisionTower
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.weights.formats import diffusers_configs
from gradina.weights.key_tables import (
    ATTENTION_NAMES,
    DROPPED,
    PAIR,
    TEXT,
    UNET,
    VAE,
    VISION,
    rename_vae_attention,
    unet_indices,
    vae_indices,
)
from gradina.weights.remap import read, sources, unclaimed, write

SD1 = UNetConfig()
SD2 = UNetConfig(heads=(5, 10, 20, 20), context=1024, linear=True)
UNETS = {"sd1": SD1, "sd2": SD2, "inpainting": replace(SD1, channels=9), "sd2 inpainting": replace(SD2, channels=9)}
SD1_TEXT = TextConfig()
SD2_TEXT = TextConfig(width=1024, inner=4096, layers=23, heads=16, activation="gelu")


def on_meta(network, *config, **settings) -> nn.Module:
    with torch.device("meta"):
        return network(*config, **settings)


@cache
def our_unet(config: UNetConfig) -> UNet:
    return on_meta(UNet, config)


@cache
def reference_unet(config: UNetConfig) -> UNet2DConditionModel:
    return on_meta(UNet2DConditionModel.from_config, diffusers_configs.unet_to_json(config))


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in network.state_dict().items()}


def taken_once(where, names) -> bool:
    counts = Counter((source.name, source.rule) for source in where.values())
    return max(counts.values()) == 1 and {source.name for source in where.values()} == set(names)


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_unet_names_are_those_of_diffusers(config):
    ours, reference = our_unet(config), reference_unet(config)
    where = sources(ours.state_dict(), UNET, "diffusers")
    assert len(where) == 686
    assert taken_once(where, reference.state_dict())
    assert shapes(ours) == {name: shapes(reference)[source.name] for name, source in where.items()}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_diffusers_converts_our_original_unet_names(config):
    ours, reference = our_unet(config), reference_unet(config)
    where = sources(ours.state_dict(), UNET, "original", unet_indices(config), "model.diffusion_model.")
    original = write(ours.state_dict(), where)
    assert taken_once(where, original)
    assert {name: tuple(x.shape) for name, x in read(original, where).items()} == shapes(ours)
    theirs = convert_ldm_unet_checkpoint(dict(original), reference.config)
    assert {name: tuple(x.shape) for name, x in theirs.items()} == shapes(reference)


def test_original_unet_names_are_those_of_published_files():
    where = sources(our_unet(SD1).state_dict(), UNET, "original", unet_indices(SD1), "model.diffusion_model.")
    names = {source.name.removeprefix("model.diffusion_model.") for source in where.values()}
    assert {
        "time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.3.0.op.bias",
        "input_blocks.4.0.skip_connection.weight", "input_blocks.11.0.out_layers.3.weight",
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight", "middle_block.2.emb_layers.1.weight",
        "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight", "output_blocks.8.2.conv.weight",
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight", "output_blocks.11.0.in_layers.2.bias",
        "out.0.weight", "out.2.bias",
    } <= names  # fmt: skip


def test_vae_names_are_those_of_diffusers():
    ours = on_meta(AutoencoderKL, VAEConfig())
    reference = on_meta(ReferenceVAE.from_config, diffusers_configs.vae_to_json(VAEConfig(), 512))
    where = sources(ours.state_dict(), VAE, "diffusers")
    assert len(where) == 248
    assert taken_once(where, reference.state_dict())
    assert shapes(ours) == {name: shapes(reference)[source.name] for name, source in where.items()}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("spelling", ATTENTION_NAMES)
def test_vae_attention_in_every_spelling(layout, spelling):
    ours = on_meta(AutoencoderKL, VAEConfig())
    where = sources(ours.state_dict(), VAE, layout, vae_indices(ours.config))
    right = write(ours.state_dict(), where)
    renamed = right
    for own, other in zip(ATTENTION_NAMES[layout], ATTENTION_NAMES[spelling], strict=True):
        renamed = {re.sub(rf"(\.mid.*\.){re.escape(own)}(\.\w+)$", rf"\1{other}\2", n): x for n, x in renamed.items()}
    assert (renamed.keys() == right.keys()) == (layout == spelling)
    assert len(renamed.keys() - right.keys()) == (0 if layout == spelling else 16)
    for weights in (
        renamed,
        {n: x.flatten(1) if x.ndim == 4 and x.shape[2:] == (1, 1) else x for n, x in renamed.items()},
    ):
        found = read(rename_vae_attention(layout, weights), {n: s for n, s in where.items() if ".mid.attn" in n})
        assert {n: tuple(x.shape) for n, x in found.items()} == {n: shapes(ours)[n] for n in found}
    assert rename_vae_attention(layout, renamed).keys() == right.keys()


def test_diffusers_converts_our_original_vae_names():
    ours = on_meta(AutoencoderKL, VAEConfig())
    reference = on_meta(ReferenceVAE.from_config, diffusers_configs.vae_to_json(VAEConfig(), 512))
    where = sources(ours.state_dict(), VAE, "original", vae_indices(VAEConfig()), "first_stage_model.")
    original = write(ours.state_dict(), where)
    assert taken_once(where, original)
    assert original["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert original["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    assert "first_stage_model.decoder.up.1.upsample.conv.weight" in original
    assert {name: tuple(x.shape) for name, x in read(original, where).items()} == shapes(ours)
    theirs = convert_ldm_vae_checkpoint(dict(original), reference.config)
    assert {name: tuple(x.shape) for name, x in theirs.items()} == shapes(reference)


@pytest.mark.parametrize("config", [SD1_TEXT, SD2_TEXT], ids=["sd1", "sd2"])
def test_text_tower_names_are_those_of_transformers(config):
    ours = on_meta(TextTower, config)
    reference = on_meta(CLIPTextModel, CLIPTextConfig(**diffusers_configs.text_to_json(config)))
    names = {f"text_model.{name.removeprefix('text_model.')}": x for name, x in shapes(reference).items()}
    where = sources(ours.state_dict(), TEXT, "transformers")
    assert taken_once(where, names)
    assert shapes(ours) == {name: names[source.name] for name, source in where.items()}


def published_open_clip(layers: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """The names of the text tower of OpenCLIP ViT-H/14 in a published SD 2 file."""
    block = {
        "ln_1.weight": (width,), "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (inner, width), "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    return {
        "positional_embedding": (77, width), "text_projection": (width, width), "logit_scale": (),
        "token_embedding.weight": (49408, width), "ln_final.weight": (width,), "ln_final.bias": (width,),
        **{f"transformer.resblocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()},
    }  # fmt: skip


def test_open_clip_names_are_those_of_sd2_files():
    published = published_open_clip(24, 1024, 4096)
    ours = on_meta(TextTower, SD2_TEXT)
    where = sources(ours.state_dict(), TEXT, "open_clip")
    assert unclaimed(published, where, [*DROPPED["text"], "transformer.resblocks.23.*"]) == []
    original = write(ours.state_dict(), where)
    assert {name: tuple(x.shape) for name, x in original.items()} == {
        name: shape
        for name, shape in published.items()
        if "resblocks.23" not in name and name not in ("text_projection", "logit_scale")
    }
    reference = on_meta(CLIPTextModel, CLIPTextConfig(**diffusers_configs.text_to_json(SD2_TEXT)))
    theirs = convert_open_clip_checkpoint(reference, {f"cond_stage_model.model.{k}": v for k, v in original.items()})
    bare = {name.removeprefix("text_model."): tuple(x.shape) for name, x in theirs.items()}
    assert bare == {name.removeprefix("text_model."): shape for name, shape in shapes(reference).items()}


def test_image_tower_and_pair_names_are_those_of_transformers():
    vision, text = VisionConfig(), TextConfig(projection=768)
    where = sources(on_meta(VisionTower, vision).state_dict(), VISION, "transformers")
    settings = diffusers_configs.vision_to_json(vision)
    reference = on_meta(
        CLIPModel,
        CLIPConfig(text_config=diffusers_configs.text_to_json(text), vision_config=settings, projection_dim=768),
    )
    tower = on_meta(CLIPVisionModelWithProjection, reference.config.vision_config)
    assert taken_once(where, tower.state_dict())
    pair = on_meta(CLIP, text, vision)
    where = sources(pair.state_dict(), PAIR, "transformers")
    assert taken_once(where, reference.state_dict())
    assert shapes(pair) == {name: shapes(reference)[source.name] for name, source in where.items()}


def test_open_clip_pair_round_trip():
    text = TextConfig(vocabulary=20, width=16, inner=24, layers=2, heads=2, projection=12, length=8)
    vision = VisionConfig(size=8, patch=4, width=16, inner=24, layers=1, heads=2, projection=12)
    ours = CLIP(text, vision).state_dict()
    where = sources(ours, PAIR, "open_clip")
    published = write(ours, where)
    assert published["visual.proj"].shape == (16, 12)
    assert published["text_projection"].shape == (16, 12)
    back = read(published, where)
    assert all(torch.equal(back[name], x) for name, x in ours.items())
