"""What a single file that we wrote says of itself in its metadata, under "gradina": all that shapes cannot say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gradina.diffusion.schedule import Schedule
from gradina.errors import WeightsError
from gradina.request import Defaults
from gradina.weights.formats import diffusers_configs
from gradina.weights.json_config import Config, checked, naming, shown
from gradina.weights.safetensors import Weights

KEPT = {"unet": ("heads", "groups", "size"), "vae": ("groups", "scale"), "text": ("heads", "eos")}  # of their configs


@dataclass(frozen=True)
class Said:
    """The settings of each network, and what else goes with a model; empty and None where a file says nothing."""

    unet: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None
    schedule: Schedule | None = None
    prediction: str | None = None
    defaults: Defaults | None = None


def said_by(weights: Weights) -> Said:
    """What the metadata of a file says; raises WeightsError, naming the file, for what no file of ours says."""
    with naming(weights.path):
        ours = json.loads(weights.metadata.get("gradina", "{}"))
        if not isinstance(ours, dict):
            raise WeightsError(f"its metadata is {shown(ours)}, expected an object")
        parts = {f.name: ours[f.name] for f in fields(Said) if f.name in (*KEPT, "tokenizer") and f.name in ours}
        for name, value in parts.items():
            if not isinstance(value, dict):
                raise WeightsError(f"its metadata says of {name} {shown(value)}, expected an object")
        schedule, prediction = (
            diffusers_configs.schedule_from(ours["scheduler"]) if "scheduler" in ours else (None, None)
        )
        defaults = diffusers_configs.defaults_from(ours) if "defaults" in ours else None
        return Said(**parts, schedule=schedule, prediction=prediction, defaults=defaults)


def as_said(config: Config, part: str, said: Said, weights: Weights) -> Config:
    """The config of a network with what its file says of it; raises WeightsError where that cannot be."""
    known: dict[str, Any] = {key: value for key, value in getattr(said, part).items() if key in KEPT[part]}
    known |= {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
    with naming(weights.path):
        return checked(replace(config, **known))
