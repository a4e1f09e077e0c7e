"""The folder of a run: the files of its stages, and the fingerprints of what each is made from."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gradina.runtime.device import multiplies_bf16
from gradina.training.checkpoint import steps_done
from gradina.training.pretrain.recipes import FORMER_KEYS, Recipe
from gradina.training.settings import Settings

log = logging.getLogger(__name__)

ADDED_LATER = {"noise_offset": 0.0}  # fields that count in fingerprints only if set, so that older runs resume
INPUTS = {  # the sections of the recipe that each part depends on
    "vae": ("vae",),
    "clip": ("clip",),
    "text_encoder": ("vae", "clip", "text_encoder"),
    "unet": ("vae", "clip", "text_encoder", "unet"),
    "decoder": ("vae", "clip", "text_encoder", "unet", "decoder"),
    "image_encoder": ("vae", "clip", "text_encoder", "unet", "image_encoder"),
}


@dataclass(frozen=True)
class Planned:
    """A stage of a recipe: a part, or a phase of it, and its settings on this machine."""

    part: Literal["vae", "clip", "text_encoder", "unet", "decoder", "image_encoder"]
    settings: Settings
    phase: int = 0  # counts from 0

    @property
    def name(self) -> str:
        """The name of its folder: "unet", then "unet-2"."""
        return f"{self.part}-{self.phase + 1}" if self.phase else self.part


def as_table(recipe: Recipe) -> dict[str, Any]:
    """A recipe as nested tables, for fingerprints: by former keys, without None and the defaults of later fields."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {FORMER_KEYS.get(k, k): v for k, v in pairs if v is not None and ADDED_LATER.get(k, ...) != v}

    return asdict(recipe, dict_factory=table)


@dataclass(frozen=True)
class RunFolder:
    """A recipe and the folder in which it is trained."""

    recipe: Recipe
    path: Path

    @cached_property
    def stages(self) -> dict[str, Planned]:
        """The stages of the recipe, by name, in their order."""
        recipe = self.recipe
        stages = [Planned("vae", settings, phase) for phase, settings in enumerate(recipe.vae.training)]
        stages += [Planned("clip", recipe.clip.training)]
        stages += [Planned("text_encoder", recipe.text_encoder.training)] if recipe.text_encoder else []
        stages += [Planned("unet", settings, phase) for phase, settings in enumerate(recipe.unet.training)]
        stages += [Planned("decoder", recipe.decoder.training)] if recipe.decoder else []
        stages += [Planned("image_encoder", recipe.image_encoder.training)] if recipe.image_encoder else []
        if any(stage.settings.precision == "bfloat16" for stage in stages) and not multiplies_bf16():
            log.info("trains in float32, since this CPU does not multiply in bfloat16")
            stages = [replace(stage, settings=replace(stage.settings, precision="float32")) for stage in stages]
        return {stage.name: stage for stage in stages}

    def phases(self, part: str) -> list[str]:
        """The names of the stages that train a part, in their order."""
        return [name for name, stage in self.stages.items() if stage.part == part]

    def previous(self, stage: str) -> str | None:
        """The phase that a stage continues; None for the first of its part."""
        planned = self.stages[stage]
        return self.phases(planned.part)[planned.phase - 1] if planned.phase else None

    def folder(self, stage: str) -> Path:
        """The folder of a stage; one by the stage's former name, if it is there."""
        former = self.path / FORMER_KEYS.get(stage, stage)
        return former if former.is_dir() else self.path / stage

    def weights(self, stage: str) -> Path:
        """The averaged weights of a finished stage, in fp16."""
        return self.folder(stage) / "weights.safetensors"

    def is_finished(self, stage: str) -> bool:
        """Whether a stage, or a later phase of its part, is finished. Raises RecipeError if by another recipe."""
        planned = self.stages[stage]
        later = self.phases(planned.part)[planned.phase :]
        return any(steps_done(self.weights(phase), self.fingerprint(phase)) for phase in later)

    def fingerprint(self, stage: str) -> str:
        """A hash of all that decides a stage's weights; prompts, names and later phases do not count."""
        recipe, planned = as_table(self.recipe), self.stages[stage]
        inputs = ("seed", "data", "vocabulary", "schedule", *(FORMER_KEYS.get(k, k) for k in INPUTS[planned.part]))
        used = {name: recipe[name] for name in inputs if name in recipe}
        if planned.part in ("vae", "unet"):
            phases = recipe[planned.part]["training"][: planned.phase + 1]
            used[planned.part] = recipe[planned.part] | {"training": phases}
        if planned.part in ("text_encoder", "unet", "image_encoder"):
            encoder_phases = [phase for phase in recipe["vae"]["training"] if phase.get("only") != "decoder"]
            used["vae"] = recipe["vae"] | {"training": encoder_phases}
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]
