"""Odd settings in the configs of models: read, or refused in one line that names the file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradina.errors import GradinaError, WeightsError
from gradina.weights.formats import diffusers_configs as configs
from gradina.weights.formats.diffusers import read_folder
from gradina.weights.formats.diffusers_configs import schedule_and_prediction
from gradina.weights.json_config import read_config


@pytest.fixture(scope="module")
def odd(saved, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("odd") / "model")


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
    """Asserts that it is read, or refused in one line that begins with the file."""
    message = str(where)
    try:
        read()
    except GradinaError as error:
        message = str(error)
    assert message.startswith(str(where))
    assert "\n" not in message
    assert len(message) < 700


@given(data=st.data(), value=ODD)
@settings(max_examples=12, deadline=None)
def test_any_value_in_any_file_is_read_or_refused_in_one_line(data, value, odd, edit_json):
    file = data.draw(st.sampled_from(sorted(SETTINGS)))
    name = data.draw(st.sampled_from(SETTINGS[file]))
    before = (odd / file).read_text()
    edit_json(odd / file, **{name: value})
    try:
        in_one_line(lambda: read_folder(odd), odd)
    finally:
        (odd / file).write_text(before)


READERS = {
    "unet/config.json": configs.unet_from_json, "vae/config.json": configs.vae_from_json,
    "text_encoder/config.json": configs.text_from_json, "scheduler/scheduler_config.json": schedule_and_prediction,
}  # fmt: skip


@given(data=st.data(), value=ODD)
@settings(max_examples=150, deadline=None)
def test_any_value_of_any_key_is_read_or_refused_in_one_line(data, value, odd):
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
def test_value_out_of_range_is_named(file, more, message, folder, saved, edit_json):
    saved(folder)
    edit_json(folder / file / "config.json", **more)
    with pytest.raises(WeightsError, match=message) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(f"{folder / file / 'config.json'}: ")
