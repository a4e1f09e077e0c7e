"""The diffusers layout: diffusers reads what is written here, and the reverse."""

import json
import shutil
import warnings

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from gradina.errors import WeightsError
from gradina.weights.formats.diffusers import read_folder, write_folder

FORMS = ("sd1", "sd2", "inpainting", "three levels", "without time")


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form, tiny, assert_same, folder):
    write_folder(tiny(form), folder)
    back = read_folder(folder)
    assert_same(tiny(form), back)
    assert back.name == "model"
    write_folder(back, folder.with_name("again"))
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "README.md":  # the card has the new name
            assert path.read_bytes() == (folder.with_name("again") / path.relative_to(folder)).read_bytes()


@pytest.mark.parametrize("form", ["sd1", "sd2", "inpainting", "three levels"])
@torch.no_grad()
def test_diffusers_loads_what_is_written(form, tiny, folder):
    model = tiny(form)
    write_folder(model, folder)
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe).__name__ == (
        "StableDiffusionInpaintPipeline" if form == "inpainting" else "StableDiffusionPipeline"
    )
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if form == "sd2" else "epsilon")
    x, cond = torch.randn(1, model.unet.config.channels, 8, 8), torch.randn(1, 77, 64)
    t = torch.tensor([5])
    assert torch.allclose(pipe.unet(x, t, cond).sample, model.unet(x, t, cond), atol=1e-4)
    theirs = pipe.tokenizer("a lighthouse!", padding="max_length", max_length=77, return_tensors="pt").input_ids
    ids = model.tokenizer("a lighthouse!")
    assert torch.equal(ids, theirs)
    assert torch.allclose(pipe.text_encoder(ids)[0], model.text(ids), atol=1e-4)
    decoded = pipe.vae.decode(x[:, :4] / 0.18215).sample
    assert torch.allclose(decoded, model.vae.decode(x[:, :4]), atol=1e-4 * decoded.abs().max())


def test_folder_written_by_diffusers_is_read(tiny, assert_same, folder, saved):
    saved(folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        network = kind.from_pretrained(folder / part)
        for file in (folder / part).iterdir():
            file.unlink()
        network.save_pretrained(folder / part)
    (folder / "gradina.json").unlink()
    back = read_folder(folder)
    assert (back.defaults.width, back.defaults.height) == (16, 16)
    assert_same(tiny(), type(back)(**{**vars(back), "defaults": tiny().defaults}))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants(variant, tiny, assert_same, folder, saved):
    saved(folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        network = kind.from_pretrained(folder / part)
        (folder / part / "diffusion_pytorch_model.safetensors").unlink()
        network.save_pretrained(folder / part, max_shard_size="1MB", variant=variant)
        assert len(list((folder / part).glob("*.safetensors"))) > 1
    text = folder / "text_encoder" / "model.safetensors"
    text.rename(text.with_name(f"model.{variant}.safetensors" if variant else "model.safetensors"))
    back = read_folder(folder, variant=variant)
    assert_same(tiny(), back)
    assert len(back.files) > 3


def test_missing_variant_is_refused(folder, saved):
    saved(folder)
    with pytest.raises(WeightsError, match=r"no diffusion_pytorch_model.fp16.safetensors.*there is: diffusion_pytorch"):
        read_folder(folder, variant="fp16")


def test_dtype_changes_only_where_asked(tiny, folder):
    write_folder(tiny(), folder, dtype=torch.float16)
    assert read_folder(folder).unet.conv_in.weight.dtype == torch.float16
    wide = read_folder(folder, dtype=torch.float32)
    assert {p.dtype for p in wide.unet.parameters()} == {torch.float32}


def test_old_attention_names_and_position_ids(tiny, assert_same, folder, saved):
    saved(folder)
    vae, text = folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "text_encoder" / "model.safetensors"
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = load_file(vae)
    for new, name in old.items():
        tensors = {k.replace(f"attentions.0.{new}", f"attentions.0.{name}"): x for k, x in tensors.items()}
    save_file(tensors, vae)
    save_file(load_file(text) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, text)
    assert_same(tiny(), read_folder(folder))


def test_prediction_can_be_overridden(folder, saved):
    saved(folder, "sd2")
    assert read_folder(folder).prediction == "v"
    assert read_folder(folder, prediction="eps").prediction == "eps"
    with pytest.raises(WeightsError, match="choices"):
        read_folder(folder, prediction="noise")


def test_card_is_kept_when_the_folder_is_written_again(tiny, assert_same, folder):
    write_folder(tiny(), folder)
    (folder / "README.md").write_text("my words")
    model = read_folder(folder)
    write_folder(model, folder)
    assert (folder / "README.md").read_text() == "my words"
    assert_same(model, tiny())
    assert_same(read_folder(folder), tiny())


def test_replaced_folder_gets_the_card_of_its_new_model(tiny, folder):
    write_folder(tiny(), folder)
    (folder / "README.md").write_text("of another model")
    write_folder(tiny(), folder, torch.bfloat16)
    card = (folder / "README.md").read_text()
    assert "of another model" not in card
    assert "Stored as bfloat16." in card
    write_folder(read_folder(folder), folder, torch.float16)
    assert "Stored as float16." in (folder / "README.md").read_text()


def test_card_is_copied_with_its_model(tiny, folder, tmp_path):
    write_folder(tiny(), folder)
    (folder / "README.md").write_text("my words")
    write_folder(read_folder(folder), tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "README.md").read_text() == "my words"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model_index.json",
            {
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            },
            "StableDiffusionXLPipeline with text_encoder_2, another family",
        ),
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, "with controlnet, another family"),
        ("model_index.json", {"unet": ["diffusers", "UNet3DConditionModel"]}, "whose unet is a UNet3DConditionModel"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "whose vae is a AutoencoderTiny"),
        (
            "unet/config.json",
            {"class_embed_type": "projection"},
            "class_embed_type is 'projection', which is not supported",
        ),
        ("unet/config.json", {"down_block_types": ["KDownBlock2D"] * 2}, "KDownBlock2D"),
        ("unet/config.json", {"attention_head_dim": [8]}, "attention_head_dim is"),
        ("unet/config.json", {"layers_per_block": [1, 2]}, "expected the same number"),
        ("vae/config.json", {"block_out_channels": None}, "missing or malformed"),
        ("vae/config.json", {"latents_mean": [0.1]}, "latents_mean"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "choices"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "is a FlowMatchEulerDiscreteScheduler, whose U-Nets are not supported",
        ),
        ("gradina.json", {"defaults": {"stepps": 3}}, "malformed"),
    ],
)
def test_unsupported_settings_are_refused(file, change, message, folder, saved):
    saved(folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | change))
    with pytest.raises(WeightsError, match=message):
        read_folder(folder)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_files_are_named(file, folder, saved):
    saved(folder)
    (folder / file).write_text("{")
    with pytest.raises(WeightsError, match=f"{file}: is no JSON"):
        read_folder(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_files_are_named(file, folder, saved):
    saved(folder)
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=f"{file}: there is no such file"):
        read_folder(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(WeightsError, match=r"has no model_index\.json|no such file"):
        read_folder(folder)


def test_loading_does_not_warn(folder, saved):
    saved(folder, "sd2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_folder(folder)


@pytest.mark.parametrize("form", ["sd1", "sd2"])
def test_folder_without_a_tokenizer_uses_that_of_clip(form, tiny, assert_same, folder, saved, caplog):
    saved(folder, form)
    shutil.rmtree(folder / "tokenizer")
    assert_same(tiny(form), read_folder(folder))
    assert f"{folder}: has no tokenizer; using CLIP's" in caplog.text
