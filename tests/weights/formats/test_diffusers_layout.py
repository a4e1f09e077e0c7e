"""Which files of a folder are read: variants, and pickles, which are refused or converted; which folders are read."""

import json
import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from gradina.errors import WeightsError
from gradina.weights.convert import convert
from gradina.weights.formats.diffusers import read_folder

FILES = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


def into_pickles(folder, *stems):
    """As such folders were published before safetensors: the text tower's file has another name there."""
    for stem in stems:
        file = folder / f"{stem}.safetensors"
        torch.save(load_file(file), folder / f"{stem.replace('/model', '/pytorch_model')}.bin")
        file.unlink()


def into_variant(folder, variant, *stems):
    for stem in stems:
        (folder / f"{stem}.safetensors").rename(folder / f"{stem}.{variant}.safetensors")


@pytest.mark.parametrize("stems", [FILES, FILES[:1], FILES[1:]])
@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_pickles_are_refused_with_the_command_that_converts_them(
    stems, target, tiny, assert_same, folder, tmp_path, saved
):
    saved(folder)
    into_pickles(folder, *stems)
    with pytest.raises(WeightsError) as caught:
        read_folder(folder)
    first = stems[0].replace("/model", "/pytorch_model")
    command = f"`gradina convert {folder} model-safe`"
    assert str(caught.value) == f"{folder}/{first}.bin: is a pickle, which can run programs; {command} reads it safely"
    from gradina.weights.open import open_source

    assert_same(tiny(), open_source(convert(folder, tmp_path / target)))


def test_sharded_pickles_are_converted(tiny, assert_same, folder, tmp_path, saved):
    saved(folder)
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / FILES[0]).with_suffix(".safetensors").unlink()
    network.save_pretrained(folder / "unet", max_shard_size="1MB", safe_serialization=False)
    assert len(list((folder / "unet").glob("*.bin"))) > 1
    with pytest.raises(WeightsError, match=r"bin.index.json: is a pickle"):
        read_folder(folder)
    assert_same(tiny(), read_folder(convert(folder, tmp_path / "out")))


def test_hostile_pickle_in_a_folder_is_not_run(folder, tmp_path, saved):
    saved(folder)
    into_pickles(folder, *FILES)

    class Attack:
        def __reduce__(self):
            return (eval, ("print('run')",))

    torch.save({"a": Attack()}, folder / f"{FILES[0]}.bin")
    with pytest.raises(WeightsError, match=r"model\.bin: this pickle wants to use .*eval"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fp32_pickles_are_preferred_to_fp16_in_conversion(tiny, assert_same, folder, tmp_path, saved):
    saved(folder)
    into_pickles(folder, *FILES)
    for stem in FILES:
        (folder / f"{stem}.fp16.safetensors").write_bytes(b"not read")
    assert_same(tiny(), read_folder(convert(folder, tmp_path / "out")))


@pytest.mark.parametrize(
    ("stems", "asked"), [(FILES, None), (FILES[:1], None), (FILES[:1], "fp16"), (FILES[1:], "fp16")]
)
def test_missing_variant_is_replaced_with_a_warning(stems, asked, tiny, assert_same, folder, saved, caplog):
    saved(folder)
    into_variant(folder, "fp16", *stems)
    with caplog.at_level(logging.WARNING):
        assert_same(tiny(), read_folder(folder, variant=asked))
    (warning,) = [record.getMessage() for record in caplog.records]
    others = stems if asked is None else [stem for stem in FILES if stem not in stems]
    assert all(f"{folder}/{stem}" in warning for stem in others)
    assert sum(f"{folder}/{stem}." in warning for stem in FILES) == len(others)
    assert ("without a variant" if asked is None else "in the variant fp16") in warning


def test_no_warning_where_all_networks_have_the_variant(folder, saved, caplog):
    saved(folder)
    with caplog.at_level(logging.WARNING):
        read_folder(folder)
        into_variant(folder, "fp16", *FILES)
        read_folder(folder, variant="fp16")
    assert not caplog.records


def test_widest_of_several_variants_is_read(folder, saved):
    saved(folder)
    into_variant(folder, "bf16", *FILES)
    for stem in FILES:
        for variant in ("fp16", "non_ema"):
            (folder / f"{stem}.{variant}.safetensors").write_bytes(b"not read")
    assert {file.name.split(".")[1] for file in read_folder(folder).files} == {"bf16"}


def test_missing_weights_are_named(folder, saved):
    saved(folder)
    (folder / f"{FILES[1]}.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"vae: has no .*model.safetensors; take a folder.*\(there is: nothing\)"):
        read_folder(folder)


INDEX = {
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}  # fmt: skip


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "StableDiffusionImg2ImgPipeline", **INDEX},
        {
            "_class_name": "LongPromptWeightingPipeline",
            **INDEX,
            "safety_checker": ["stable_diffusion", "SafetyChecker"],
        },
        {
            "_class_name": ["my_pipeline", "MyPipeline"],
            **INDEX,
            "feature_extractor": None,
            "image_encoder": [None, None],
        },
        {"_class_name": "StableDiffusionXLPipeline", **INDEX},
        {**INDEX, "unet": ["my_pipeline", "MyUNet"]},
        {},
        None,
    ],
)
def test_pipeline_is_supported_by_its_components(index, tiny, assert_same, folder, saved, caplog):
    saved(folder)
    (folder / "model_index.json").unlink()
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    assert_same(tiny(), read_folder(folder))
    assert not caplog.records


def test_unread_components_are_named_in_a_warning(tiny, assert_same, folder, saved, caplog):
    saved(folder)
    index = {**INDEX, "caption_generator": ["transformers", "BlipForConditionalGeneration"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert_same(tiny(), read_folder(folder))
    assert "its components caption_generator are not supported" in caplog.text


@pytest.mark.parametrize("part", ["text_encoder_2", "transformer", "controlnet", "motion_adapter", "prior"])
@pytest.mark.parametrize("listed", [True, False])
def test_other_families_are_named_by_their_components(part, listed, folder, saved):
    saved(folder)
    (folder / "model_index.json").unlink()
    if listed:
        (folder / "model_index.json").write_text(
            json.dumps({"_class_name": "TheirPipeline", **INDEX, part: ["a", "B"]})
        )
    else:
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=f"ipeline with {part}, another family; expected unet, vae, text_encoder"):
        read_folder(folder)
