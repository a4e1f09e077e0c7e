"""Single files in the original layout: detected by shapes, strict, and what diffusers makes of them."""

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.models.tokenizer import Tokenizer
from gradina.weights.components import Components
from gradina.weights.families import FAMILIES
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import read_file, write_file
from gradina.weights.formats.ldm_config import V_BIAS, PredictionWarning, configs_from_shapes
from gradina.weights.safetensors import Weights

FORMS = ("sd1", "sd2", "inpainting", "three levels", "without time")


def plain(path, **more):
    """The file as others publish it: without our metadata, and with what they leave in."""
    save_file(load_file(path) | more, path)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form, tiny, same, file):
    write_file(tiny(form), file)
    back = read_file(file)
    same(tiny(form), back)
    assert back.name == "model"
    write_file(replace(back, name="tiny"), file.with_name("again.safetensors"))
    assert file.read_bytes() == file.with_name("again.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["sd1", "sd2", "inpainting", "three levels"])
def test_diffusers_reads_the_same_weights_from_it(form, tiny, tmp_path, file, saved):
    saved(file, form)
    write_folder(tiny(form), tmp_path / "folder")
    kind = StableDiffusionInpaintPipeline if form == "inpainting" else StableDiffusionPipeline
    theirs = kind.from_single_file(file, config=str(tmp_path / "folder"), local_files_only=True)
    ours = kind.from_pretrained(tmp_path / "folder")
    for part in ("unet", "vae", "text_encoder"):
        one, two = getattr(theirs, part).state_dict(), getattr(ours, part).state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(x, two[name]) for name, x in one.items())


@pytest.mark.parametrize("form", FORMS)
def test_shapes_say_almost_everything(form, tiny, file, saved):
    saved(file, form)
    plain(file)
    model = tiny(form)
    back = read_file(file, prediction=model.prediction)
    assert replace(back.unet.config, size=model.unet.config.size) == model.unet.config
    assert back.vae.config == model.vae.config
    assert back.text.config == model.text.config
    assert back.tokenizer.pad == model.tokenizer.pad


def published(family: str) -> Weights:
    """The names and shapes of a published checkpoint, with all that lies about in such files."""
    from gradina.models.clip import TextTower
    from gradina.models.unet import UNet
    from gradina.models.vae import AutoencoderKL
    from gradina.weights import key_tables
    from gradina.weights.remap import sources, write

    f = FAMILIES[family]
    with torch.device("meta"):
        unet, vae, text = UNet(f.unet).state_dict(), AutoencoderKL(f.vae).state_dict(), TextTower(f.text).state_dict()
        old = family.startswith("sd1")
        home = "cond_stage_model.transformer." if old else "cond_stage_model.model."
        tensors = {
            **write(
                unet,
                sources(unet, key_tables.UNET, "original", key_tables.unet_indices(f.unet), "model.diffusion_model."),
            ),
            **write(vae, sources(vae, key_tables.VAE, "original", key_tables.vae_indices(f.vae), "first_stage_model.")),
            **write(text, sources(text, key_tables.TEXT, "transformers" if old else "open_clip", prefix=home)),
            "model_ema.diffusion_modelout2bias": torch.zeros(4),
            "model_ema.decay": torch.zeros(()),
            "betas": torch.zeros(1000),
            "alphas_cumprod": torch.zeros(1000),
        }
        if old:
            tensors[f"{home}text_model.embeddings.position_ids"] = torch.zeros(1, 77)
        else:
            last = {k: x for k, x in tensors.items() if ".resblocks.22." in k}
            tensors |= {k.replace(".22.", ".23."): x for k, x in last.items()}
            tensors |= {home + "text_projection": torch.zeros(1024, 1024), home + "logit_scale": torch.zeros(())}
    return Weights("checkpoint", tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_families_are_known_by_their_shapes(family):
    found = configs_from_shapes(published(family))
    expected = FAMILIES[family]
    assert replace(found.unet, size=expected.unet.size) == expected.unet
    assert (found.vae, found.text, found.text_format.pad) == (expected.vae, expected.text, expected.pad)
    generation = "SD 1.x" if family.startswith("sd1") else "SD 2.x"
    assert found.family == generation + (" inpainting" if "inpainting" in family else "")


def test_what_lies_about_in_published_files_is_let_go(tiny, same, file, saved):
    saved(file)
    prefix = "cond_stage_model.transformer.text_model."
    plain(file, **{
        f"{prefix}embeddings.position_ids": torch.arange(77)[None], "model_ema.decay": torch.ones(()),
        "betas": torch.zeros(9), "sqrt_alphas_cumprod": torch.zeros(9), "first_stage_model.loss.logvar": torch.zeros(1),
        "something.of.a.merge": torch.zeros(1),
    })  # fmt: skip
    back = read_file(file)
    assert torch.equal(back.unet.conv_in.weight, tiny().unet.conv_in.weight)
    assert (back.defaults.width, back.prediction) == (128, "eps")


def test_the_last_layer_of_a_whole_open_clip_tower_is_left_out(file, saved):
    saved(file, "sd2")
    home = "cond_stage_model.model."
    extra = {
        k.replace(".2.", ".3."): x
        for k, x in load_file(file).items()
        if k.startswith(f"{home}transformer.resblocks.2.")
    }
    plain(file, **{k: x.clone() for k, x in extra.items()}, **{home + "text_projection": torch.zeros(64, 64)})
    assert read_file(file, prediction="v").text.config.layers == 3


def test_names_without_text_model_and_with_wrappers(tiny, file, saved):
    saved(file)
    save_file({f"state_dict.{k.replace('.text_model.', '.')}": x for k, x in load_file(file).items()}, file)
    assert torch.equal(read_file(file).text.token.weight, tiny().text.token.weight)


def test_sd2_in_the_layout_of_sgm(tiny, file, saved):
    saved(file, "sd2")
    renamed = {
        k.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): x for k, x in load_file(file).items()
    }
    save_file(renamed, file)
    assert torch.equal(read_file(file, prediction="eps").text.token.weight, tiny("sd2").text.token.weight)


@pytest.mark.parametrize(("spread", "guess"), [(0.05, "eps"), (0.2, "v"), (None, "eps")])
def test_sd2_files_that_do_not_say_what_they_predict(spread, guess, file, monkeypatch, saved):
    saved(file, "sd2")
    plain(file)
    name = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"
    monkeypatch.setattr("gradina.weights.formats.ldm_config.V_BIAS", name if spread else V_BIAS)
    bias = torch.linspace(-1, 1, 64)
    if spread:
        plain(file, **{name: bias / bias.std(correction=0) * spread})
    with pytest.warns(PredictionWarning, match=f"noise .eps. or velocity .v.; taking '{guess}'"):
        assert read_file(file).prediction == guess
    assert read_file(file, prediction="x0").prediction == "x0"


@pytest.mark.parametrize("form", ["sd1", "inpainting"])
def test_other_families_do_not_warn(form, file, saved):
    saved(file, form)
    plain(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_file(file).prediction == "eps"


def test_marker_keys_and_metadata_say_what_is_predicted(file, saved):
    saved(file)
    plain(file, v_pred=torch.ones(0), ztsnr=torch.ones(0))
    back = read_file(file)
    assert back.prediction == "v"
    assert back.schedule.sigmas[-1] > 1000
    save_file(load_file(file), file, {"modelspec.prediction_type": "epsilon"})
    assert read_file(file).prediction == "eps"


def test_an_own_vocabulary_travels_in_the_metadata(tiny, same, file):
    tokenizer = Tokenizer.train(["a handwritten seven", "the digit 7", "a seven"], size=530, length=12)
    parts = Components(**{**vars(tiny()), "tokenizer": tokenizer})
    write_file(parts, file)
    same(parts, read_file(file))
    assert b"vocab.json" in file.read_bytes()


def test_a_small_vocabulary_that_nothing_explains(file, saved):
    saved(file)
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    plain(file, **{name: torch.zeros(600, 64)})
    with pytest.raises(WeightsError, match="600 tokens"):
        read_file(file)


def test_missing_and_unexpected(file, saved):
    saved(file)
    tensors = load_file(file)
    name = "model.diffusion_model.out.0.weight"
    save_file({k: x for k, x in tensors.items() if k != name}, file)
    with pytest.raises(
        WeightsError, match=r"UNet of an original SD 1.x checkpoint.*1 missing \(first: out\.0\.weight\)"
    ):
        read_file(file)
    save_file(tensors | {"first_stage_model.strange.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"AutoencoderKL of .*1 unexpected \(first: strange.weight\)"):
        read_file(file)
    save_file({k: x for k, x in tensors.items() if "middle_block.1.proj_in" not in k}, file)
    with pytest.raises(WeightsError, match=r"lacks middle_block\.1\.proj_in\.weight"):
        read_file(file)


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


def test_an_autoencoder_beside_a_text_tower_is_not_alone(file, saved):
    tensors = load_file(saved(file))
    rest = {name: x for name, x in tensors.items() if not name.startswith("model.diffusion_model.")}
    save_file(rest | {"model_ema.diffusion_modelout0weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=f"^{file}: has no U-Net; expected a whole"):
        read_file(file)


def test_whole_numbers_are_no_weights(file, saved):
    tensors, name = load_file(saved(file)), "model.diffusion_model.out.2.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    with pytest.raises(WeightsError, match=r"out\.2\.weight is int8, expected floating point"):
        read_file(file)


@pytest.mark.parametrize(("name", "what"), OTHERS.items(), ids=OTHERS)
def test_other_files_are_named(name, what, file):
    save_file({name: torch.zeros(2, 2)}, file)
    with pytest.raises(WeightsError, match=what) as caught:
        read_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "what"), [(5, "depth-conditioned"), (7, "upscaler"), (6, "unknown kind")])
def test_other_input_channels_are_named(channels, what, file, saved):
    saved(file)
    plain(file, **{"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)})
    with pytest.raises(WeightsError, match=f"takes {channels} channels, so it is .*{what}"):
        read_file(file)


@pytest.mark.parametrize("names", [("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")])
@pytest.mark.parametrize("flat", [True, False])
def test_an_autoencoder_whose_attention_has_the_names_of_diffusers(names, flat, tiny, same, file, saved):
    saved(file)
    renamed = {}
    for name, x in load_file(file).items():
        for old, new in zip(("q", "k", "v", "proj_out"), names, strict=True):
            if ".mid.attn_1." in name and f".{old}." in name:
                name, x = name.replace(f".{old}.", f".{new}."), x.flatten(1) if flat and x.ndim == 4 else x
        renamed[name] = x
    assert len(renamed.keys() - load_file(file).keys()) == 16
    save_file(renamed, file, {"gradina": "{}"})
    got = read_file(file).vae.state_dict()
    assert all(torch.equal(x, got[name]) for name, x in tiny().vae.state_dict().items())


def test_what_is_outside_of_the_parts_is_noted_and_what_is_dead_is_not(file, saved, caplog):
    saved(file)
    dead = ("model_ema.decay", "betas", "cond_stage_model.logit_scale", "denoiser.sigmas")
    plain(file, **{name: torch.zeros(1) for name in dead})
    read_file(file)
    assert not caplog.records
    strange = ("lora_te_a.lora_down.weight", "embeddings.a", "cond_stage_model.other.weight")
    plain(file, **{name: torch.zeros(1) for name in strange})
    read_file(file)
    assert f"{file}: 3 tensors belong to no network and are ignored (first: {min(strange)})" in caplog.text


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."])
def test_what_is_inside_a_part_has_its_place(part, file, saved):
    saved(file)
    plain(file, **{f"{part}strange.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 unexpected \(first: strange\.weight\)"):
        read_file(file)
