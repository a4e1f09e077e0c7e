"""Configs of diffusers: old ones are corrected as its pipelines correct them, and schedules come back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from gradina.diffusion.betas import scaled_linear_betas
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import Schedule, sd_schedule
from gradina.errors import WeightsError
from gradina.weights.formats.diffusers import read_folder
from gradina.weights.formats.diffusers_configs import schedule_from_config, schedule_to_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, numpy 2


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("law", [{}, {"rescale_betas_zero_snr": True}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_configurations_come_back(law: dict[str, Any], prediction: str, tmp_path: Path) -> None:
    schedule = sd_schedule(**law)
    config = json.loads(json.dumps(schedule_to_config(schedule, prediction)))
    back = schedule_from_config(config)
    assert torch.equal(back.sigmas, schedule.sigmas)
    assert schedule_to_config(back, prediction) == config
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    reference = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    assert reference.config.prediction_type == PREDICTIONS[prediction].diffusers
    torch.testing.assert_close(reference.alphas_cumprod[:-1].double(), schedule.alphas_bar[:-1], rtol=1e-3, atol=1e-9)


def test_betas_without_a_law_are_written_out() -> None:
    schedule = Schedule.from_betas(scaled_linear_betas(20), steps_offset=0, set_alpha_to_one=True)
    config = schedule_to_config(schedule, "v")
    assert len(config["trained_betas"]) == 20
    back = schedule_from_config(config)
    torch.testing.assert_close(back.sigmas, schedule.sigmas, rtol=1e-12, atol=0)
    assert (back.steps_offset, back.set_alpha_to_one) == (0, True)


def test_the_configuration_of_stable_diffusion_1() -> None:
    config = {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "trained_betas": None, "clip_sample": False,
    }  # fmt: skip
    schedule = schedule_from_config(config)
    assert torch.equal(schedule.sigmas, sd_schedule().sigmas)
    assert (schedule.steps_offset, schedule.set_alpha_to_one) == (1, False)
    with pytest.raises(WeightsError, match="sigmoid"):
        schedule_from_config(config | {"beta_schedule": "sigmoid"})


@pytest.mark.parametrize("version", [None, "0.6.0", "0.8.1", "0.9.0.dev0", "0.9.0", "0.10.2", "0.35.0"])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_old_sample_sizes_are_corrected_as_in_diffusers(version, size, folder, saved, edit_json):
    saved(folder)
    (folder / "gradina.json").unlink()
    edit_json(folder / "unet" / "config.json", sample_size=size, **({"_diffusers_version": version} if version else {}))
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
def test_old_schedulers_are_corrected_as_in_diffusers(name, more, folder, saved, edit_json):
    saved(folder)
    old = {"clip_sample": ..., "prediction_type": ..., "set_alpha_to_one": ..., "timestep_spacing": ...}
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name=name, **old, **more)
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])
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
def test_heads_as_number_or_list(heads, tiny, assert_same, folder, saved, edit_json):
    saved(folder)
    edit_json(folder / "unet" / "config.json", attention_head_dim=heads)
    assert_same(tiny(), read_folder(folder))
