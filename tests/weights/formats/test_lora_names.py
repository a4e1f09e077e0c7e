"""Every spelling of a layer in LoRA files, and names of other families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gradina.adapters.lora import LoRA
from gradina.errors import WeightsError
from gradina.pipeline.model import StableDiffusion
from gradina.weights.formats.lora import read_lora

Tiny = Callable[..., StableDiffusion]

UNET_SPELLINGS: dict[str, Callable[[str, str], str]] = {  # of a layer of the U-Net, and of down or up
    "diffusers": lambda layer, role: f"unet.{layer}.lora_{AB[role]}.weight",
    "named adapter": lambda layer, role: f"unet.{layer}.lora_{AB[role]}.default_0.weight",
    "peft": lambda layer, role: f"base_model.model.{layer}.lora_{AB[role]}.weight",
    "peft, named adapter": lambda layer, role: f"unet.base_model.model.{layer}.lora_{AB[role]}.default.weight",
    "kohya": lambda layer, role: f"lora_unet_{layer.replace('.', '_')}.lora_{role}.weight",
    "lycoris": lambda layer, role: f"lycoris_{layer.replace('.', '_')}.lora_{role}.weight",
    "linear layers": lambda layer, role: f"unet.{layer}.lora_linear_layer.{role}.weight",
    "2023": lambda layer, role: f"unet.{layer}.lora.{role}.weight",
    "processors": lambda layer, role: f"{processor(layer)}.{role}.weight",
    "processors, with the part": lambda layer, role: f"unet.{processor(layer)}.{role}.weight",
    "processors, by peft": lambda layer, role: f"unet.{processor(layer)}.lora_{AB[role]}.weight",
}


TEXT_SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "diffusers": lambda layer, role: f"text_encoder.text_model.{layer}.lora_{AB[role]}.weight",
    "without the model": lambda layer, role: f"text_encoder.{layer}.lora_{AB[role]}.default_0.weight",
    "without the part": lambda layer, role: f"text_model.{layer}.lora_{AB[role]}.weight",
    "peft": lambda layer, role: f"base_model.model.text_model.{layer}.lora_{AB[role]}.default.weight",
    "kohya": lambda layer, role: f"lora_te_text_model_{layer.replace('.', '_')}.lora_{role}.weight",
    "kohya, first of two": lambda layer, role: f"lora_te1_text_model_{layer.replace('.', '_')}.lora_{role}.weight",
    "comfy": lambda layer, role: f"text_encoders.clip_l.transformer.text_model.{layer}.lora_{role}.weight",
    "linear layers": lambda layer, role: f"text_encoder.text_model.{layer}.lora_linear_layer.{role}.weight",
    "2023": lambda layer, role: f"text_encoder.text_model.{as_unet(layer)}_lora.{role}.weight",
    "2023, without the model": lambda layer, role: f"text_encoder.{as_unet(layer)}_lora.lora_{AB[role]}.weight",
}


AB = {"down": "A", "up": "B"}


def processor(layer: str) -> str:
    stem, _, last = layer.removesuffix(".0").rpartition(".")
    return f"{stem}.processor.{last}_lora"


def as_unet(layer: str) -> str:
    stem, _, last = layer.rpartition(".")
    return f"{stem}.to_{last.removesuffix('_proj')}"


def respelt(name: str, unet: str, text: str) -> str:
    part, _, rest = name.partition(".")
    layer, _, end = rest.partition(".lora_")
    role = "down" if end.startswith("A") else "up"
    if part == "unet":
        return UNET_SPELLINGS[unet](layer, role)
    return TEXT_SPELLINGS[text](layer.removeprefix("text_model."), role)


@given(spelling=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_mixture_of_spellings_is_read(
    tiny_model: Tiny,
    tmp_path: Path,
    lora_file: tuple[LoRA, dict[str, torch.Tensor]],
    spelling: st.DataObject,
    assert_same_lora: Any,
) -> None:
    """Each layer has a random spelling, so that mixtures and single layers are covered."""
    model, (made, tensors) = tiny_model("sd1"), lora_file
    choices = {
        name.partition(".lora_")[0]: (
            spelling.draw(st.sampled_from(sorted(UNET_SPELLINGS))),
            spelling.draw(st.sampled_from(sorted(TEXT_SPELLINGS))),
        )
        for name in tensors
    }
    save_file(
        {respelt(name, *choices[name.partition(".lora_")[0]]): x for name, x in tensors.items()},
        tmp_path / "b.safetensors",
    )
    assert_same_lora(read_lora(tmp_path / "b.safetensors", model.unet, model.text), made)


@pytest.mark.parametrize("head", ["lora_unet_", "diffusion_model.", "model.diffusion_model."])
def test_original_names_are_read(tiny_model: Tiny, tmp_path: Path, head: str, random_layers: Any) -> None:
    """As kohya's scripts and ComfyUI write them."""
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    weights = random_layers(model.unet, 1)["mid.attn.blocks.0.self_attn.q"]
    layer = "middle_block.1.transformer_blocks.0.attn1.to_q"
    name = head + (layer.replace(".", "_") if head.endswith("_") else layer)
    save_file({f"{name}.lora_down.weight": weights.down, f"{name}.lora_up.weight": weights.up}, path)
    assert list(read_lora(path, model.unet, model.text).unet) == ["mid.attn.blocks.0.self_attn.q"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", "Stable Diffusion XL"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
        ("lora_unet_blocks_0_cross_attn_q.lora_down.weight", "Wan"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "Lumina or Z-Image"),
    ],
)
def test_other_families_are_named(tiny_model: Tiny, tmp_path: Path, name: str, family: str) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    save_file({name: torch.ones(2, 8)}, path)
    with pytest.raises(WeightsError, match=f"a.safetensors: holds no LoRA for this model .*; it is for {family}, take"):
        read_lora(path, model.unet, model.text)
