"""What a file is, told by the names of its tensors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.weights.formats.ldm import read_file

OTHERS = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "a LoRA adapter",
    "unet.down_blocks.0.attentions.0.to_q.lora_A.weight": "a LoRA adapter",
    "emb_params": "a textual inversion embedding",
    "control_model.time_embed.0.weight": "a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet",
    "conditioner.embedders.1.model.ln_final.weight": "Stable Diffusion XL checkpoint",
    "conditioner.embedders.0.model.ln_final.weight": "has no U-Net and no autoencoder",
    "model.diffusion_model.label_emb.0.0.weight": "unCLIP checkpoint or the refiner",
    "model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": "Stable Diffusion 3",
    "double_blocks.0.img_attn.proj.weight": "Flux",
    "first_stage_model.encoder.conv_in.weight": "an autoencoder alone",
    "encoder.down_blocks.0.resnets.0.conv1.weight": "an autoencoder alone, in the diffusers layout",
    "encoder.down.0.block.0.conv1.weight": "an autoencoder alone",
    "down_blocks.0.resnets.0.conv1.weight": "a U-Net alone, in the diffusers layout",
    "text_model.embeddings.token_embedding.weight": "a CLIP model alone",
    "conditioner.embedders.0.open_clip.model.visual.proj": "a Stable Video Diffusion checkpoint",
    "cc_projection.weight": "a Zero123 checkpoint",
    "adapter.body.0.resnets.0.block1.weight": "a T2I-Adapter",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder",
    "model.diffusion_model.blocks.0.self_attn.norm_q.weight": "a Wan checkpoint",
    "cap_embedder.0.weight": "a Lumina or Z-Image checkpoint",
    "vision_model.embeddings.patch_embedding.weight": "a CLIP model alone",
    "decoder.layers.0.weight": r"a tiny autoencoder \(TAESD\); give it by --tiny",
    "something.else": "an unknown kind",
    "model.diffusion_model.out.0.weight": "has no autoencoder and no text tower",
}


@pytest.mark.parametrize(("name", "what"), OTHERS.items(), ids=OTHERS)
def test_other_formats_are_named(name, what, file):
    save_file({name: torch.zeros(2, 2)}, file)
    with pytest.raises(WeightsError, match=what) as caught:
        read_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_checkpoint_without_unet_is_not_an_autoencoder_alone(file, saved):
    tensors = load_file(saved(file))
    rest = {name: x for name, x in tensors.items() if not name.startswith("model.diffusion_model.")}
    save_file(rest | {"model_ema.diffusion_modelout0weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=f"^{file}: has no U-Net; expected a whole"):
        read_file(file)


@pytest.mark.parametrize(("channels", "what"), [(5, "depth-conditioned"), (7, "upscaler"), (6, "unknown kind")])
def test_other_unet_inputs_are_named(channels, what, file, saved, strip_metadata):
    saved(file)
    strip_metadata(file, **{"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)})
    with pytest.raises(WeightsError, match=f"takes {channels} channels, so it is .*{what}"):
        read_file(file)
