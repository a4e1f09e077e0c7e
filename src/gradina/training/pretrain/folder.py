"""The folder of a run: the files of its stages, and the fingerprints of what each is made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gradina.training.checkpoint import steps_done
from gradina.training.pretrain.recipes import Planned, Recipe, as_table, plan

INPUTS = {  # the sections of the recipe that each part depends on
    "vae": ("vae",),
    "clip": ("clip",),
    "words": ("vae", "clip", "words"),
    "unet": ("vae", "clip", "words", "unet"),
    "vision": ("vae", "clip", "words", "unet", "vision"),
}


@dataclass(frozen=True)
class RunFolder:
    """A recipe and the folder in which it is trained."""

    recipe: Recipe
    path: Path

    @cached_property
    def stages(self) -> dict[str, Planned]:
        """The stages of the recipe, by name, in their order."""
        return plan(self.recipe)

    def phases(self, part: str) -> list[str]:
        """The names of the stages that train a part, in their order."""
        return [name for name, stage in self.stages.items() if stage.part == part]

    def previous(self, stage: str) -> str | None:
        """The phase that a stage continues; None for the first of its part."""
        planned = self.stages[stage]
        return self.phases(planned.part)[planned.phase - 1] if planned.phase else None

    def state(self, stage: str) -> Path:
        """The checkpoint of an unfinished stage."""
        return self.path / stage / "state.safetensors"

    def weights(self, stage: str) -> Path:
        """The averaged weights of a finished stage, in fp16."""
        return self.path / stage / "weights.safetensors"

    def is_finished(self, stage: str) -> bool:
        """Whether a stage, or a later phase of its part, is finished. Raises RecipeError if by another recipe."""
        planned = self.stages[stage]
        later = self.phases(planned.part)[planned.phase :]
        return any(steps_done(self.weights(phase), self.fingerprint(phase)) for phase in later)

    def fingerprint(self, stage: str) -> str:
        """A hash of all that decides a stage's weights; prompts, names and later phases do not count."""
        recipe, planned = as_table(self.recipe), self.stages[stage]
        inputs = ("seed", "data", "vocabulary", "schedule", *INPUTS[planned.part])
        used = {name: recipe[name] for name in inputs if name in recipe}
        if planned.part in ("vae", "unet"):
            phases = recipe[planned.part]["training"][: planned.phase + 1]
            used[planned.part] = recipe[planned.part] | {"training": phases}
        if planned.part in ("words", "unet", "vision"):
            encoder_phases = [phase for phase in recipe["vae"]["training"] if phase.get("only") != "decoder"]
            used["vae"] = recipe["vae"] | {"training": encoder_phases}
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]
