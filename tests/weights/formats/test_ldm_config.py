"""Single files are detected by shapes, metadata, and what their U-Net predicts."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.weights.families import FAMILIES
from gradina.weights.formats.ldm import read_file
from gradina.weights.formats.ldm_config import V_BIAS, PredictionWarning, configs_from_shapes
from gradina.weights.safetensors import Weights

FORMS = ("sd1", "sd2", "inpainting", "three levels", "without time")


def published(family: str) -> Weights:
    """The names and shapes of a published checkpoint, with the unused tensors of such files."""
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
def test_published_families_are_detected(family):
    found = configs_from_shapes(published(family))
    expected = FAMILIES[family]
    assert replace(found.unet, size=expected.unet.size) == expected.unet
    assert (found.vae, found.text, found.text_format.pad) == (expected.vae, expected.text, expected.pad)
    generation = "SD 1.x" if family.startswith("sd1") else "SD 2.x"
    assert found.family == generation + (" inpainting" if "inpainting" in family else "")


@pytest.mark.parametrize("form", FORMS)
def test_configs_from_shapes(form, tiny, file, saved, strip_metadata):
    saved(file, form)
    strip_metadata(file)
    model = tiny(form)
    back = read_file(file, prediction=model.prediction)
    assert replace(back.unet.config, size=model.unet.config.size) == model.unet.config
    assert back.vae.config == model.vae.config
    assert back.text.config == model.text.config
    assert back.tokenizer.pad == model.tokenizer.pad


def test_last_layer_of_a_complete_open_clip_tower_is_not_used(file, saved, strip_metadata):
    saved(file, "sd2")
    home = "cond_stage_model.model."
    extra = {
        k.replace(".2.", ".3."): x
        for k, x in load_file(file).items()
        if k.startswith(f"{home}transformer.resblocks.2.")
    }
    strip_metadata(file, **{k: x.clone() for k, x in extra.items()}, **{home + "text_projection": torch.zeros(64, 64)})
    assert read_file(file, prediction="v").text.config.layers == 3


@pytest.mark.parametrize(("spread", "guess"), [(0.05, "eps"), (0.2, "v"), (None, "eps")])
def test_unstated_prediction_of_sd2_is_guessed_with_a_warning(spread, guess, file, monkeypatch, saved, strip_metadata):
    saved(file, "sd2")
    strip_metadata(file)
    name = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"
    monkeypatch.setattr("gradina.weights.formats.ldm_config.V_BIAS", name if spread else V_BIAS)
    bias = torch.linspace(-1, 1, 64)
    if spread:
        strip_metadata(file, **{name: bias / bias.std(correction=0) * spread})
    with pytest.warns(PredictionWarning, match=f"noise .eps. or velocity .v.; taking '{guess}'"):
        assert read_file(file).prediction == guess
    assert read_file(file, prediction="x0").prediction == "x0"


@pytest.mark.parametrize("form", ["sd1", "inpainting"])
def test_sd1_and_inpainting_predict_eps_without_a_warning(form, file, saved, strip_metadata):
    saved(file, form)
    strip_metadata(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_file(file).prediction == "eps"


def test_marker_keys_and_metadata_state_the_prediction(file, saved, strip_metadata):
    saved(file)
    strip_metadata(file, v_pred=torch.ones(0), ztsnr=torch.ones(0))
    back = read_file(file)
    assert back.prediction == "v"
    assert back.schedule.sigmas[-1] > 1000
    save_file(load_file(file), file, {"modelspec.prediction_type": "epsilon"})
    assert read_file(file).prediction == "eps"


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
def test_malformed_metadata_is_refused_in_one_line(part, value, saved, tmp_path):
    file = saved(tmp_path / "model.safetensors")
    save_file(load_file(file), file, {"gradina": json.dumps({part: value})})
    with pytest.raises(WeightsError) as caught:
        read_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "[" * 100_000])
def test_metadata_must_be_an_object(text, saved, tmp_path):
    file = saved(tmp_path / "model.safetensors")
    save_file(load_file(file), file, {"gradina": text})
    with pytest.raises(WeightsError, match=r"model\.safetensors: "):
        read_file(file)
