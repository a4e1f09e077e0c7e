"""Odd and old settings of models: as diffusers' pipelines correct them, or one line that names the file."""

import json
import logging
import shutil
import warnings

import diffusers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gradina.errors import GradinaError, WeightsError
from gradina.files import read_json
from gradina.weights.formats import diffusers_configs as configs
from gradina.weights.formats.diffusers import read_folder
from gradina.weights.formats.ldm import read_file
from gradina.weights.json_config import read_config


@pytest.fixture(scope="module")
def odd(saved, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("odd") / "model")


def change(path, **more):
    """The file with these settings in place of its own; those that are ... are taken out."""
    content = json.loads(path.read_text()) | more
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize("version", [None, "0.6.0", "0.8.1", "0.9.0.dev0", "0.9.0", "0.10.2", "0.35.0"])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_sizes_of_old_are_corrected_as_diffusers_does(version, size, folder, saved):
    saved(folder)
    (folder / "gradina.json").unlink()
    change(folder / "unet" / "config.json", sample_size=size, **({"_diffusers_version": version} if version else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    model = read_folder(folder)
    assert (model.defaults.width, model.defaults.height) == (side, side)
    assert model.unet.config.size == (64 if size == 32 and version in ("0.6.0", "0.8.1") else size)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"])
@pytest.mark.parametrize(
    "more", [{"steps_offset": ...}, {"steps_offset": 0}, {"steps_offset": 1}, {"steps_offset": None}]
)
def test_schedulers_of_old_are_corrected_as_diffusers_does(name, more, folder, saved):
    saved(folder)
    old = {"clip_sample": ..., "prediction_type": ..., "set_alpha_to_one": ..., "timestep_spacing": ...}
    change(folder / "scheduler" / "scheduler_config.json", _class_name=name, **old, **more)
    change(folder / "model_index.json", scheduler=["diffusers", name])
    model = read_folder(folder)
    assert model.prediction == "eps"
    if more["steps_offset"] is None or name == "LMSDiscreteScheduler":
        assert model.schedule.steps_offset == 1
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder).scheduler.config
    assert model.schedule.steps_offset == theirs.steps_offset == 1
    assert model.schedule.set_alpha_to_one == theirs.set_alpha_to_one


@pytest.mark.parametrize("heads", [8, [8, 8]])
def test_forms_of_heads(heads, tiny, same, folder, saved):
    saved(folder)
    change(folder / "unet" / "config.json", attention_head_dim=heads)
    same(tiny(), read_folder(folder))


ODD = st.one_of(
    st.none(), st.booleans(), st.sampled_from([-1, 0, 1, 2, 3, 5, 7, 10**5, 10**12, 10**400, -(10**30)]),
    st.sampled_from([0.5, 1e-300, 1e308, float("nan"), float("inf"), -0.0]), st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(-2, 40), st.text(max_size=2)), max_size=4), st.just([8] * 400),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
SETTINGS = {
    "unet/config.json": (
        "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block",
        "attention_head_dim", "num_attention_heads", "transformer_layers_per_block", "cross_attention_dim",
        "norm_num_groups", "sample_size", "use_linear_projection", "act_fn", "norm_eps", "_diffusers_version",
    ),
    "vae/config.json": (
        "in_channels", "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
        "scaling_factor", "down_block_types", "up_block_types", "use_quant_conv",
    ),
    "text_encoder/config.json": (
        "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "hidden_act", "eos_token_id", "layer_norm_eps",
    ),
    "scheduler/scheduler_config.json": (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
        "prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one", "_class_name",
    ),
    "gradina.json": ("defaults",),
    "model_index.json": ("_class_name", "unet", "vae", "controlnet", "tokenizer"),
    "tokenizer/tokenizer_config.json": ("model_max_length", "pad_token", "bos_token", "added_tokens_decoder"),
}  # fmt: skip


def in_one_line(read, where):
    """Whether that is read; if not, its error is one line that begins with the file."""
    said = str(where)
    try:
        read()
    except GradinaError as error:
        said = str(error)
    assert said.startswith(str(where))
    assert "\n" not in said
    assert len(said) < 700


@given(data=st.data(), value=ODD)
@settings(max_examples=12, deadline=None)
def test_any_value_in_any_file_is_read_or_is_one_line(data, value, odd):
    file = data.draw(st.sampled_from(sorted(SETTINGS)))
    name = data.draw(st.sampled_from(SETTINGS[file]))
    before = (odd / file).read_text()
    change(odd / file, **{name: value})
    try:
        in_one_line(lambda: read_folder(odd), odd)
    finally:
        (odd / file).write_text(before)


READERS = {
    "unet/config.json": configs.unet_from_json, "vae/config.json": configs.vae_from_json,
    "text_encoder/config.json": configs.text_from_json, "scheduler/scheduler_config.json": configs.schedule_from_json,
}  # fmt: skip


@given(data=st.data(), value=ODD)
@settings(max_examples=150, deadline=None)
def test_any_value_of_any_setting_is_read_or_is_one_line(data, value, odd):
    file = data.draw(st.sampled_from(sorted(READERS)))
    name = data.draw(st.sampled_from(SETTINGS[file]))
    path = odd.with_name("odd.json")
    path.write_text(json.dumps(json.loads((odd / file).read_text()) | {name: value}))
    in_one_line(lambda: read_config(path, READERS[file]), path)


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        ("unet", {"layers_per_block": 0}, "layers_per_block is 0, expected a whole number from 1 to 64"),
        ("unet", {"norm_num_groups": "32"}, "norm_num_groups is '32', expected a whole number"),
        ("unet", {"norm_num_groups": 24}, "norm_num_groups is 24, which does not divide the width 32"),
        ("unet", {"attention_head_dim": 5}, "attention_head_dim is 5, which does not divide the width 32"),
        ("unet", {"block_out_channels": [32]}, "block_out_channels has 1 entries, down_block_types 2"),
        ("unet", {"use_linear_projection": "no"}, "linear is 'no', expected true or false"),
        ("unet", {"sample_size": -8}, "sample_size is -8"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor is nan, expected a number above 0"),
        (
            "text_encoder",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000, expected a whole number from 1 to",
        ),
    ],
)
def test_what_cannot_be_is_named(file, more, message, folder, saved):
    saved(folder)
    change(folder / file / "config.json", **more)
    with pytest.raises(WeightsError, match=message) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(f"{folder / file / 'config.json'}: ")


ODD_SAID = {
    "unet": [[], {"heads": 3}, {"heads": ["8", 8]}, {"heads": [5, 5]}, {"groups": 0}, {"size": None}, {"size": 1e9}],
    "vae": ["x", {"scale": "1"}, {"scale": -1}, {"groups": 7}],
    "text": [{"heads": 0}, {"heads": [2, 2]}, {"eos": "a"}],
    "scheduler": [3, {"num_train_timesteps": 0}, {"beta_schedule": []}, {"trained_betas": [2]}, {"prediction_type": 3}],
    "defaults": [3, {"width": "x"}, {"steps": -1}, {"prompt": "a"}, {"width": 12}],
    "tokenizer": [3, {}, {"length": 2, "pad": 0}, {"length": 77, "pad": "x"}, {"files": []}, {"files": {"..": "x"}},
                  {"files": {"vocab.json": 3}}],
}  # fmt: skip


@pytest.mark.parametrize(("part", "value"), [(part, value) for part, values in ODD_SAID.items() for value in values])
def test_odd_metadata_of_a_single_file_is_one_line(part, value, saved, tmp_path):
    file = saved(tmp_path / "model.safetensors")
    save_file(load_file(file), file, {"gradina": json.dumps({part: value})})
    with pytest.raises(WeightsError) as caught:
        read_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "[" * 100_000])
def test_metadata_that_is_no_object(text, saved, tmp_path):
    file = saved(tmp_path / "model.safetensors")
    save_file(load_file(file), file, {"gradina": text})
    with pytest.raises(WeightsError, match=r"model\.safetensors: "):
        read_file(file)


def test_parts_of_different_models(tiny, folder, saved):
    saved(folder)
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=20)
    assert read_folder(folder).tokenizer.length == 20
    shutil.rmtree(folder / "text_encoder")
    saved(folder.with_name("digits"))
    text = folder.with_name("digits") / "text_encoder"
    change(text / "config.json", hidden_size=32)
    tensors = load_file(text / "model.safetensors")
    cut = {n: (x[:32] if x.shape[0] == 64 else x)[..., : 32 if x.shape[-1] == 64 else None] for n, x in tensors.items()}
    save_file({n: x.contiguous() for n, x in cut.items()}, text / "model.safetensors")
    text.rename(folder / "text_encoder")
    with pytest.raises(
        WeightsError, match=f"{folder}: the U-Net reads text states of width 64, its text tower gives 32"
    ):
        read_folder(folder)


def test_a_tokenizer_longer_than_its_text_tower(tiny, folder, saved, caplog):
    saved(folder)
    config = folder / "tokenizer" / "tokenizer_config.json"
    change(config, model_max_length=200)
    with caplog.at_level(logging.WARNING):
        model = read_folder(folder)
    assert model.tokenizer.length == 77
    assert model.tokenizer("a lighthouse").tolist() == tiny().tokenizer("a lighthouse").tolist()
    assert (
        "its tokenizer makes texts of 200 tokens, its text tower has 77 positions; texts are cut to 77 tokens"
        in caplog.text
    )


def test_the_prediction_that_contradicts_is_noted(folder, saved, caplog):
    saved(folder, "sd2")
    with caplog.at_level(logging.WARNING):
        assert read_folder(folder, prediction="v").prediction == "v"
        assert not caplog.records
        assert read_folder(folder, prediction="eps").prediction == "eps"
    assert "states that it predicts v; drawing as if it were eps, as asked" in caplog.text


def test_a_mark_before_json_is_no_damage(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json") == {"a": 1}
