"""The folder of a run: which stages are finished, and what their fingerprints depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradina.training.data.dataset import generator
from gradina.training.pretrain import folder
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.folder import RunFolder
from gradina.training.pretrain.recipes import Recipe, read_recipe
from gradina.training.pretrain.run import run

from .conftest import PHASES, in_phases

RECIPES = Path(__file__).parents[3] / "recipes"
IMAGE_ENCODER = """
[image_encoder.training]
steps = 2
batch = 8
lr = 1e-3
warmup = 0
"""


def test_an_appended_phase_is_trained_alone(recipe_file: Path, tmp_path: Path) -> None:
    """What was learnt before a phase was thought of still counts."""
    in_phases(recipe_file)
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    recipe_file.write_text(recipe_file.read_text().replace("[defaults]", PHASES.partition("\n\n")[2] + "\n[defaults]"))
    assert {p.stage for p in run(read_recipe(recipe_file), tmp_path / "run")} == {"unet-3"}


def test_a_finished_phase_counts_for_those_before_it(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    (tmp_path / "run" / "unet" / "weights.safetensors").unlink()
    assert list(run(read_recipe(recipe_file), tmp_path / "run")) == []


def with_phase(recipe: Recipe, **fields: object) -> Recipe:
    """The recipe with another phase of the U-Net."""
    phase = replace(recipe.unet.training[0], **fields)  # type: ignore[arg-type]
    return replace(recipe, unet=replace(recipe.unet, training=(phase,)))


@pytest.mark.parametrize(
    "fields",
    [{"shift": 2.0}, {"noise_offset": 0.1}, {"min_snr": 5.0}, {"interval": (0.1, 5.0)}, {"lr": 1e-4}, {"classes": 3}],
)
def test_a_fingerprint_depends_on_each_setting_of_a_phase(
    recipe_file: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    recipe = read_recipe(recipe_file)
    one, other = (RunFolder(each, tmp_path) for each in (recipe, with_phase(recipe, **fields)))
    assert one.fingerprint("unet") != other.fingerprint("unet")
    assert one.fingerprint("clip") == other.fingerprint("clip")


def test_fingerprints_are_those_of_older_runs(recipe_file: Path, tmp_path: Path) -> None:
    """Fields were renamed, and options of the noise law added, since."""
    recipe = read_recipe(recipe_file)
    recipe = with_phase(replace(recipe, data=replace(recipe.data, folders=("mnist",))), classes=3, jitter=0.1)
    recipe = with_phase(recipe, default_style="noto", shift=2.0)
    assert RunFolder(recipe, tmp_path).fingerprint("unet") == "299ed7a471c45c45"
    assert RunFolder(recipe, tmp_path).fingerprint("vae") == "527fd4c6ede60723"
    emoji = RunFolder(read_recipe(RECIPES / "emoji.toml"), tmp_path)
    expected = {"clip": "9d938737539a2e1c", "text_encoder": "9b1c9f5c92dfa904", "unet-6": "ceddcc9d08a1f3a9"}
    assert {stage: emoji.fingerprint(stage) for stage in expected} == expected


@pytest.mark.parametrize(("has", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_bf16_is_for_cpus_that_multiply_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, expected: str
) -> None:
    """The others emulate it, and take up to 70 times as long; a run begun on one goes on on the other."""
    monkeypatch.setattr(folder, "multiplies_bf16", lambda: has)
    emoji = RunFolder(read_recipe(RECIPES / "emoji.toml"), tmp_path)
    assert {stage.settings.precision for stage in emoji.stages.values()} == {expected}
    assert emoji.recipe.clip.training.precision == "bfloat16"
    assert emoji.fingerprint("clip") == "9d938737539a2e1c"


def test_a_stage_goes_on_in_a_folder_of_its_former_name(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + IMAGE_ENCODER)
    recipe = read_recipe(recipe_file)
    assert {p.stage for p in run(recipe, tmp_path / "run")} >= {"image_encoder"}
    seeds = Experiment(recipe, tmp_path / "run").generator("image_encoder", 3), generator(recipe.seed, "vision", 3)
    assert seeds[0].initial_seed() == seeds[1].initial_seed(), "its batches are those of older runs"
    (tmp_path / "run" / "image_encoder").rename(tmp_path / "run" / "vision")
    assert list(run(recipe, tmp_path / "run")) == []
    assert not (tmp_path / "run" / "image_encoder").exists()
