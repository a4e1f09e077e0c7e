"""diffusers' scheduler_config.json <-> Schedule."""

from __future__ import annotations

from typing import Any

import torch

from gradina.diffusion.betas import BetaLaw, zero_terminal_snr
from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.schedule import Schedule
from gradina.errors import WeightsError
from gradina.weights.json_config import Json, check_int, check_number


def schedule_from_config(config: Json) -> Schedule:
    """The schedule of a scheduler_config.json, with diffusers' defaults. Raises WeightsError for unknown betas."""
    known = {
        "steps_offset": config.get("steps_offset", 0),
        "set_alpha_to_one": config.get("set_alpha_to_one", config.get("_class_name") != "PNDMScheduler"),
        "timestep_spacing": config.get("timestep_spacing", "leading"),
    }
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        zero_snr = config.get("rescale_betas_zero_snr", False)
        return Schedule.from_betas(zero_terminal_snr(betas) if zero_snr else betas, **known)
    as_diffusers = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    law = BetaLaw(**{f: config[f] for f in BetaLaw.__dataclass_fields__ if f in config} | {
        k: v for k, v in as_diffusers.items() if k not in config})  # fmt: skip
    return Schedule.from_betas(law.betas(), law=law, **known)


def schedule_and_prediction(json: Json) -> tuple[Schedule, str | None]:
    """The schedule of a scheduler_config.json as diffusers' pipelines correct it, and eps, v, x0 or None.

    Those pipelines take 1 for every other `steps_offset`, which files of before diffusers 0.4 lack, and never clip.
    """
    given = {name: value for name, value in json.items() if value is not None}
    if str(kind := given.get("_class_name", "")).startswith(("FlowMatch", "EDM")):
        raise WeightsError(f"scheduler config: is a {str(kind)[:80]}, whose U-Nets are not supported")
    check_int("num_train_timesteps", given.get("num_train_timesteps", 1000), 2, 100_000)
    for name in ("beta_start", "beta_end"):
        check_number(name, given.get(name, 0.01), 0, 1)
    if "trained_betas" in given:
        check_int("the length of trained_betas", len(given["trained_betas"]), 2, 100_000)
        for beta in given["trained_betas"]:
            check_number("trained_betas", beta, 0, 1)
    prediction = given.get("prediction_type")
    return schedule_from_config({**given, "steps_offset": 1}), prediction and prediction_named(prediction).name


def schedule_to_config(schedule: Schedule, prediction: str) -> dict[str, Any]:
    """scheduler_config.json for a schedule and a prediction (eps, v, x0); `schedule_from_config` reads it back."""
    alphas_bar = schedule.alphas_bar
    betas = 1 - alphas_bar / torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
    law = schedule.law or BetaLaw("linear")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(betas),
        "beta_start": law.beta_start,
        "beta_end": law.beta_end,
        "beta_schedule": law.beta_schedule,
        "trained_betas": None if schedule.law else betas.tolist(),
        "rescale_betas_zero_snr": law.rescale_betas_zero_snr,
        "prediction_type": prediction_named(prediction).diffusers,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "set_alpha_to_one": schedule.set_alpha_to_one,
        "clip_sample": False,
        "skip_prk_steps": True,
    }
