"""Single files in the original layout: round trips, strictness, and what diffusers reads from them."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.models.tokenizer import Tokenizer
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import read_file, write_file

FORMS = ("sd1", "sd2", "inpainting", "three levels", "without time")


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form, tiny, assert_same, file):
    write_file(tiny(form), file)
    back = read_file(file)
    assert_same(tiny(form), back)
    assert back.name == "model"
    write_file(replace(back, name="tiny"), file.with_name("again.safetensors"))
    assert file.read_bytes() == file.with_name("again.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["sd1", "sd2", "inpainting", "three levels"])
def test_diffusers_reads_the_same_weights(form, tiny, tmp_path, file, saved):
    saved(file, form)
    write_folder(tiny(form), tmp_path / "folder")
    kind = StableDiffusionInpaintPipeline if form == "inpainting" else StableDiffusionPipeline
    theirs = kind.from_single_file(file, config=str(tmp_path / "folder"), local_files_only=True)
    ours = kind.from_pretrained(tmp_path / "folder")
    for part in ("unet", "vae", "text_encoder"):
        one, two = getattr(theirs, part).state_dict(), getattr(ours, part).state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(x, two[name]) for name, x in one.items())


def test_unused_tensors_of_published_files_are_ignored(tiny, assert_same, file, saved, strip_metadata):
    saved(file)
    prefix = "cond_stage_model.transformer.text_model."
    strip_metadata(file, **{
        f"{prefix}embeddings.position_ids": torch.arange(77)[None], "model_ema.decay": torch.ones(()),
        "betas": torch.zeros(9), "sqrt_alphas_cumprod": torch.zeros(9), "first_stage_model.loss.logvar": torch.zeros(1),
        "something.of.a.merge": torch.zeros(1),
    })  # fmt: skip
    back = read_file(file)
    assert torch.equal(back.unet.conv_in.weight, tiny().unet.conv_in.weight)
    assert (back.defaults.width, back.prediction) == (128, "eps")


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


def test_vocabulary_is_kept_in_the_metadata(tiny, assert_same, file):
    tokenizer = Tokenizer.train(["a handwritten seven", "the digit 7", "a seven"], size=530, length=12)
    parts = replace(tiny(), tokenizer=tokenizer)
    write_file(parts, file)
    assert_same(parts, read_file(file))
    assert b"vocab.json" in file.read_bytes()


def test_unknown_vocabulary_is_refused(file, saved, strip_metadata):
    saved(file)
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    strip_metadata(file, **{name: torch.zeros(600, 64)})
    with pytest.raises(WeightsError, match="600 tokens"):
        read_file(file)


def test_missing_and_unexpected_tensors_are_named(file, saved):
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


@pytest.mark.parametrize("names", [("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")])
@pytest.mark.parametrize("flat", [True, False])
def test_vae_attention_with_the_names_of_diffusers(names, flat, tiny, assert_same, file, saved):
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


def test_warning_of_unknown_tensors_outside_the_networks(file, saved, caplog, strip_metadata):
    saved(file)
    dead = ("model_ema.decay", "betas", "cond_stage_model.logit_scale", "denoiser.sigmas")
    strip_metadata(file, **{name: torch.zeros(1) for name in dead})
    read_file(file)
    assert not caplog.records
    strange = ("lora_te_a.lora_down.weight", "embeddings.a", "cond_stage_model.other.weight")
    strip_metadata(file, **{name: torch.zeros(1) for name in strange})
    read_file(file)
    assert f"{file}: 3 tensors belong to no network and are ignored (first: {min(strange)})" in caplog.text


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."])
def test_unknown_tensor_inside_a_network_is_refused(part, file, saved, strip_metadata):
    saved(file)
    strip_metadata(file, **{f"{part}strange.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 unexpected \(first: strange\.weight\)"):
        read_file(file)
