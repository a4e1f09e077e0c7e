"""The contrastive pair in the layout of transformers, which reads what is written here, and the reverse."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPModel, CLIPProcessor

from gradina.errors import DiskError, WeightsError
from gradina.models.clip import TextConfig
from gradina.models.clip_vision import CLIP, ConvConfig, VisionConfig
from gradina.models.tokenizer import Tokenizer
from gradina.tasks.retrieval import preprocess
from gradina.weights.convert import convert
from gradina.weights.formats.clip import ContrastivePair, read_pair, write_pair
from gradina.weights.formats.diffusers import read_folder, write_folder
from gradina.weights.formats.ldm import read_file
from gradina.weights.hub import fetch_only, load_patterns

TEXTS = ["a red apple", "a dog on a red background, in noto style", ""]
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
TOLERANCE = 1e-4


def make(vision=None, **changes):
    tokenizer = Tokenizer.train(TEXTS * 2, 540, length=16)
    text = TextConfig(
        vocabulary=len(tokenizer), length=16, width=48, inner=80, layers=2, heads=4, eos=tokenizer.eos, projection=24
    )
    vision = vision or VisionConfig(size=24, patch=6, width=32, inner=64, layers=2, heads=4, projection=24)
    clip = CLIP(text, vision).eval()
    return replace(ContrastivePair(clip=clip, tokenizer=tokenizer), **changes)


def photo(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def assert_same_pair(one, two):
    assert (one.clip.text.config, one.clip.vision.config) == (two.clip.text.config, two.clip.vision.config)
    assert (one.mean, one.std, one.resample, one.phrases) == (two.mean, two.std, two.resample, two.phrases)
    left, right = one.clip.state_dict(), two.clip.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(x, right[name]) for name, x in left.items())
    assert torch.equal(one.tokenizer(TEXTS), two.tokenizer(TEXTS))


PICTURES = [photo(24, 24), photo(61, 45), photo(30, 200), photo(7, 9), photo(333, 100)]
COLOURS = {"ours": {}, "OpenAI's": {"mean": OPENAI[0], "std": OPENAI[1], "resample": Resampling.BILINEAR}}


@pytest.mark.parametrize("colours", COLOURS)
@torch.no_grad()
def test_similarities_equal_transformers(colours, folder):
    ours = make(**COLOURS[colours])
    write_pair(ours, folder)
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    given = processor(text=TEXTS, images=PICTURES, return_tensors="pt", padding=True)
    pixels = torch.stack([preprocess(ours, picture) for picture in PICTURES])
    assert torch.allclose(pixels, given.pixel_values, atol=1e-6)
    expected = model(**given).logits_per_text
    assert expected.std() > 0.1
    assert torch.allclose(ours.clip(ours.tokenizer(TEXTS), pixels), expected, atol=TOLERANCE)


@torch.no_grad()
def test_folder_written_by_transformers_is_read(folder, tmp_path):
    ours = make(mean=(0.1, 0.2, 0.3))
    write_pair(ours, folder)
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    CLIPProcessor.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert_same_pair(ours, read_pair(tmp_path / "theirs"))


def test_round_trip_with_a_convolutional_tower(folder):
    ours = make(ConvConfig(size=16, widths=(4, 6, 8), projection=24), phrases=(("a red apple", "a dog"),))
    ours.clip.vision.norms[1].mean.fill_(0.5)
    write_pair(ours, folder)
    assert_same_pair(ours, read_pair(folder))
    with pytest.raises(ValueError, match="gradina_clip"):
        AutoModel.from_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    for widths in ([], [1] * 9, "many"):
        changed = content | {"vision_config": content["vision_config"] | {"widths": widths}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match=r"config\.json: (a setting is missing or malformed|widths is)"):
            read_pair(folder)


def test_round_trip(folder):
    ours = make(phrases=(("a red apple", "a dog"), ("", "in noto style")), std=(0.5, 0.25, 1))
    write_pair(ours, folder)
    back = read_pair(folder)
    assert_same_pair(ours, back)
    assert (back.name, back.files) == ("model", (folder / "model.safetensors",))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "merges.txt", "model.safetensors", "phrases.json", "preprocessor_config.json",
        "special_tokens_map.json", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    write_pair(back, folder)  # a pair is replaced by a pair
    assert_same_pair(ours, read_pair(folder))
    write_pair(back, folder, torch.float16)
    assert read_pair(folder).dtype == torch.float16
    assert read_pair(folder, torch.float32).dtype == torch.float32


def test_preprocessing_defaults_to_that_of_openai(folder):
    write_pair(make(), folder)
    (folder / "preprocessor_config.json").unlink()
    back = read_pair(folder)
    assert (back.mean, back.std, back.resample) == (*OPENAI, Resampling.BICUBIC)
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 24, "size": 24, "do_resize": True,
           "resample": 3, "image_mean": OPENAI[0], "image_std": OPENAI[1]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    assert_same_pair(read_pair(folder), back)


def test_sharded_weights_with_position_ids(folder):
    ours = make()
    write_pair(ours, folder)
    whole = load_file(folder / "model.safetensors") | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    (folder / "model.safetensors").unlink()
    parts = {
        "model-00001-of-00002.safetensors": list(whole)[::2],
        "model-00002-of-00002.safetensors": list(whole)[1::2],
    }
    for name, keys in parts.items():
        save_file({key: whole[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    back = read_pair(folder)
    assert_same_pair(ours, back)
    assert [path.name for path in back.files] == sorted(parts)


def test_fingerprint_covers_all_that_decides_an_embedding(folder, tmp_path):
    ours = make()
    write_pair(ours, folder)
    fingerprint = read_pair(folder).fingerprint
    write_pair(make(phrases=(("a dog",),)), tmp_path / "other weights")
    write_pair(replace(ours, phrases=(("a dog",),)), tmp_path / "phrases")
    write_pair(replace(ours, mean=OPENAI[0]), tmp_path / "colours")
    assert read_pair(tmp_path / "phrases").fingerprint == fingerprint
    others = {read_pair(tmp_path / name).fingerprint for name in ("other weights", "colours")}
    assert len(others | {fingerprint, read_pair(folder, torch.float16).fingerprint}) == 4


def test_other_folders_are_refused(folder):
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"config\.json: there is no such file; fetch or save the folder again"):
        read_pair(folder)
    (folder / "config.json").write_text(json.dumps({"projection_dim": 3}))
    with pytest.raises(WeightsError, match="text_config"):
        read_pair(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json: expected a JSON object, got list"):
        read_pair(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", {"do_resize": False}, "do_resize is False, which is not supported"),
        ("preprocessor_config.json", {"size": {"height": 24, "width": 24}}, "size is .*expected 24, the tower's"),
        ("preprocessor_config.json", {"crop_size": 224}, "crop_size is 224"),
        ("preprocessor_config.json", {"image_std": [1, 1]}, "expected three colours"),
        ("preprocessor_config.json", {"image_std": [1, 0, 1]}, "std over 0"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "a setting is missing or malformed"),
        ("preprocessor_config.json", {"resample": 17}, "a setting is missing or malformed"),
        ("phrases.json", {"a": "b"}, "expected a JSON list, got dict"),
        ("phrases.json", ["a dog"], "expected a list of lists of texts"),
        ("phrases.json", [["a dog"], []], "expected a list of lists of texts"),
        ("phrases.json", [["a dog", 3]], "expected a list of lists of texts"),
        ("tokenizer_config.json", {"model_max_length": 77}, "they are not of one model"),
        ("vocab.json", {}, "the tokenizer files do not fit together"),
    ],
)
def test_unsupported_and_malformed_files_are_named(file, content, message, folder):
    write_pair(make(), folder)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        read_pair(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_folder_of_other_files_is_not_replaced(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(DiskError, match="is not replaced"):
        write_pair(make(), folder)


@pytest.fixture
def paired(folder, tiny_model):
    """A model's folder with a pair in it, and that pair."""
    tiny_model().save(folder)
    ours = make(phrases=(("a dog",),))
    write_pair(ours, folder / "clip")
    return ours


def test_pair_is_copied_with_its_model(paired, folder, tmp_path, tiny_model, assert_same):
    parts = read_folder(folder)
    assert parts.clip == folder / "clip"
    tiny_model().save(tmp_path / "without")
    assert read_folder(tmp_path / "without").hash == parts.hash
    write_folder(parts, tmp_path / "copy")
    assert_same_pair(paired, read_pair(read_folder(tmp_path / "copy").clip))
    convert(tmp_path / "copy", tmp_path / "again")
    assert_same_pair(paired, read_pair(tmp_path / "again" / "clip"))
    write_folder(parts, folder)  # over itself
    assert_same_pair(paired, read_pair(folder / "clip"))
    assert_same(read_folder(folder), tiny_model())
    assert read_file(convert(folder, tmp_path / "one.safetensors")).clip is None


def test_model_without_a_pair_has_none(folder, tiny_model):
    tiny_model().save(folder)
    assert read_folder(folder).clip is None


def test_pair_is_converted_to_the_dtype_of_its_model(paired, folder, tmp_path):
    convert(folder, tmp_path / "half", dtype=torch.float16)
    pair = read_pair(tmp_path / "half" / "clip")
    assert pair.dtype == torch.float16
    assert_same_pair(paired, read_pair(folder / "clip"))
    assert_same_pair(replace(paired, clip=paired.clip.half()), pair)


def test_reading_a_model_does_not_open_its_pair(paired, folder):
    (folder / "clip" / "model.safetensors").write_bytes(b"damaged")
    assert read_folder(folder).clip == folder / "clip"


def test_only_model_files_are_copied_and_links_are_followed(paired, folder, tmp_path):
    (folder / "clip" / "notes.pdf").write_text("mine")
    (folder / "clip" / "model.safetensors").rename(tmp_path / "blob")
    os.symlink(tmp_path / "blob", folder / "clip" / "model.safetensors")
    write_folder(read_folder(folder), tmp_path / "copy")
    assert not (tmp_path / "copy" / "clip" / "notes.pdf").exists()
    assert not (tmp_path / "copy" / "clip" / "model.safetensors").is_symlink()
    assert_same_pair(paired, read_pair(tmp_path / "copy" / "clip"))


def test_missing_pair_is_an_error_and_nothing_is_written(paired, folder, tmp_path):
    parts = read_folder(folder)
    (folder / "clip").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="the contrastive pair that goes with the model is gone"):
        write_folder(parts, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_diffusers_loads_a_model_with_a_pair(paired, folder):
    from diffusers import DiffusionPipeline

    assert type(DiffusionPipeline.from_pretrained(folder)).__name__ == "StableDiffusionPipeline"


def test_only_the_pair_is_fetched_from_the_hub(monkeypatch):
    assert {"clip/*.json", "clip/merges.txt", "clip/model.safetensors"} <= set(load_patterns())
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **given: asked.update(given) or f"/{name}")
    assert str(fetch_only("openai/clip", "pair")) == "/openai/clip"
    assert {"config.json", "model.safetensors", "clip/config.json", "clip/phrases.json"} <= set(asked["allow_patterns"])
    assert not any("unet" in name for name in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("tower", "key", "value", "message"),
    [
        ("vision_config", "patch_size", 0, "patch_size is 0, expected a whole number"),
        ("vision_config", "image_size", "24", "image_size is '24', expected a whole number"),
        ("vision_config", "num_attention_heads", 5, "attention heads is 5, which does not divide the width 32"),
        ("text_config", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
        ("text_config", "vocab_size", None, "vocab_size is None"),
        (None, "projection_dim", None, "projection_dim is None"),
    ],
)
def test_values_out_of_range_are_named(tower, key, value, message, folder):
    write_pair(make(), folder)
    content = json.loads((folder / "config.json").read_text())
    (content if tower is None else content[tower])[key] = value
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        read_pair(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: ")
