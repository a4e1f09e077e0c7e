"""scheduler_config.json: round trips, and what diffusers reads in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from gradina.diffusion.betas import scaled_linear_betas
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import Schedule, sd_schedule
from gradina.errors import WeightsError
from gradina.weights.formats.scheduler_config import schedule_from_config, schedule_to_config

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
