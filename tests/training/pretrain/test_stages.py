"""The stages: what each trains, starts from and does not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gradina
from gradina.models.clip_vision import ConvConfig
from gradina.tasks.retrieval import open_pair
from gradina.training.data.dataset import generator
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import IconScenes
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import ImageEncoderRecipe, Recipe, read_recipe
from gradina.training.pretrain.run import run
from gradina.training.pretrain.stages import cropped, stage
from gradina.training.settings import Settings

from ..conftest import STYLES
from .conftest import in_phases


def test_the_unet_is_trained_in_phases(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    recipe = read_recipe(recipe_file)
    stages = [(p.stage, p.step.step) for p in run(recipe, tmp_path / "run")]
    assert stages[12:] == [*(("unet", i) for i in range(1, 5)), *(("unet-2", i) for i in range(1, 5))]
    experiment = Experiment(recipe, tmp_path / "run")
    small, whole = experiment.latents(16)[0], experiment.latents()[0]
    assert small.shape[2:] == (2, 2)
    assert whole.shape[2:] == (4, 4)
    assert whole.std().item() == pytest.approx(1, rel=1e-4), "the scale of the latents is that of whole pictures"
    assert gradina.load(tmp_path / "run" / "model").defaults.width == 32


def test_a_phase_continues_from_the_one_before(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    recipe = read_recipe(recipe_file)
    running = run(recipe, tmp_path / "run")
    for progress in running:
        if progress.stage == "unet-2":
            break
    running.close()
    before = load_file(tmp_path / "run" / "unet" / "weights.safetensors")
    after = load_file(tmp_path / "run" / "unet-2" / "state.safetensors")
    apart = max((before[name].float() - after[f"network.{name}"]).abs().max().item() for name in before)
    assert 0 < apart <= 1.1e-5, "one step of the warm-up away"


TEXT_ENCODER = """
[text_encoder]
width = 16
layers = 1
heads = 2

[text_encoder.training]
steps = 4
batch = 8
lr = 1e-2
warmup = 0
"""


def test_the_text_tower_is_pretrained_before_the_unet(recipe_file: Path, tmp_path: Path) -> None:
    before = read_recipe(recipe_file)
    for _ in run(before, tmp_path / "run"):
        pass
    recipe_file.write_text(recipe_file.read_text() + TEXT_ENCODER)
    recipe = read_recipe(recipe_file)
    (tmp_path / "run" / "unet" / "weights.safetensors").unlink()
    taken = [progress.stage for progress in run(recipe, tmp_path / "run")]
    assert taken == ["text_encoder"] * 4 + ["unet"] * 8, "autoencoder and pair stay what they are"
    experiment = Experiment(recipe, tmp_path / "run")
    paired, taught = experiment.clip.text.state_dict(), experiment.text.state_dict()
    drawn = gradina.load(tmp_path / "run" / "model", device="cpu").text.state_dict()
    assert not torch.equal(paired["token.weight"], taught["token.weight"])
    assert all(torch.equal(value, taught[name]) for name, value in drawn.items()), "the U-Net reads what they learnt"
    assert torch.equal(experiment.pair.clip.text.token.weight, paired["token.weight"])
    assert (tmp_path / "run" / "text_encoder" / "000004.png").is_file()
    assert before.text_encoder is None


IMAGE_ENCODER = """
[image_encoder.training]
steps = 5
batch = 8
lr = 1e-3
warmup = 1
"""


def test_the_image_encoder_stage_trains_the_image_tower_and_freezes_the_text_tower(
    recipe_file: Path, tmp_path: Path
) -> None:
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    before = Experiment(read_recipe(recipe_file), tmp_path / "run")
    recipe_file.write_text(recipe_file.read_text() + IMAGE_ENCODER)
    recipe = read_recipe(recipe_file)
    assert [p.stage for p in run(recipe, tmp_path / "run")] == ["image_encoder"] * 5, "no other stage depends on it"
    after = Experiment(recipe, tmp_path / "run")
    for name, value in before.pair.clip.state_dict().items():
        moved = not torch.equal(value, after.pair.clip.state_dict()[name])
        assert moved == (name.startswith("vision.") or name in ("text.projection.weight", "logit_scale")), name


def test_a_phase_may_train_the_text_tower(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    before, found, after = recipe_file.read_text().rpartition("[[unet.training]]\n")
    recipe_file.write_text(f"{before}{found}text_rate = 0.5\nwarmup = 0\n{after}")
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "run"))
    experiment = Experiment(recipe, tmp_path / "run")
    first, second = (
        experiment.finished(experiment.new_text_to_latent, name).text.state_dict() for name in ("unet", "unet-2")
    )
    drawn, paired = gradina.load(tmp_path / "run" / "model", device="cpu").text, experiment.pair.clip.text
    moved = {name for name, value in experiment.clip.text.state_dict().items() if not torch.equal(second[name], value)}
    assert {"token.weight", "blocks.0.attn.q.weight"} <= moved
    assert "projection.weight" not in moved, "what compares words with pictures is not asked"
    for name, value in experiment.clip.text.state_dict().items():
        assert torch.equal(first[name], value), name
        assert torch.equal(paired.state_dict()[name], value), name
    for name, value in drawn.state_dict().items():
        assert torch.equal(second[name], value), name


def test_the_autoencoder_is_trained_in_phases(recipe_file: Path, tmp_path: Path) -> None:
    whole = recipe_file.read_text()
    _, found, rest = whole.partition("[vae.training]\nsteps = 6\nbatch = 4\nlr = 1e-3\nwarmup = 2\n")
    assert found
    one = "[[vae.training]]\nsteps = 3\nbatch = 4\nlr = 1e-3\nwarmup = 0\n"
    recipe_file.write_text(whole.replace(found, f"{one}\n{one}resized = 1.0\n"))
    recipe = read_recipe(recipe_file)
    taken = [progress.stage for progress in run(recipe, tmp_path / "run")]
    assert taken[:6] == ["vae"] * 3 + ["vae-2"] * 3
    experiment = Experiment(recipe, tmp_path / "run")
    first, second = (experiment.finished(experiment.new_vae, name).state_dict() for name in ("vae", "vae-2"))
    moves = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert 0 < moves.max() < 4e-3, "the second goes on from the first"
    assert all(torch.equal(value, second[name]) for name, value in experiment.vae.state_dict().items())
    assert rest


def test_a_decoder_phase_does_not_change_latents_or_unet(
    recipe_file: Path, tmp_path: Path
) -> None:  # fmt: skip
    before = read_recipe(recipe_file)
    first = replace(before.vae.training[0], steps=3, warmup=0)
    before = replace(before, vae=replace(before.vae, training=(first,)))
    after = replace(before, vae=replace(before.vae, training=(first, replace(first, only="decoder"))))
    for _ in run(before, tmp_path / "run"):
        pass
    taken = {progress.stage for progress in run(after, tmp_path / "run")}
    assert taken == {"vae-2"}, "nothing else has to learn anew"
    experiment = Experiment(after, tmp_path / "run")
    old, new = (experiment.finished(experiment.new_vae, name).state_dict() for name in ("vae", "vae-2"))
    same = {name.partition(".")[0]: True for name in old}
    for name, value in old.items():
        same[name.partition(".")[0]] &= torch.equal(value, new[name])
    assert same == {"encoder": True, "quant": True, "post_quant": False, "decoder": False}
    shipped = gradina.load(tmp_path / "run" / "model", device="cpu").vae.state_dict()
    assert torch.equal(shipped["decoder.conv_out.weight"], new["decoder.conv_out.weight"])


def test_name_classification_and_dropped_patches_change_the_contrastive_loss(recipe_file: Path, tmp_path: Path) -> None:
    plain = read_recipe(recipe_file)
    more = "[clip]\nkept_patches = 0.5\nclassification = true\nrotation = 10.0\n\n[clip.text]"
    recipe_file.write_text(recipe_file.read_text().replace("[clip.text]", more))
    classified = read_recipe(recipe_file)
    losses = []
    for recipe, folder in ((plain, "plain"), (classified, "classified")):
        losses.append([p.step.loss for p in run(recipe, tmp_path / folder) if p.stage == "clip"])
    assert min(losses[1]) > max(losses[0]) + 1, "finding a name among ten is a loss of its own"


@pytest.mark.parametrize("line", ["shift = 3.0", "noise_offset = 0.5", "min_snr = 1.0", "interval = [0.5, 2.0]"])
def test_a_phase_may_set_each_option_of_the_noise_law(recipe_file: Path, tmp_path: Path, line: str) -> None:
    plain = read_recipe(recipe_file)
    list(run(plain, tmp_path / "run"))
    recipe_file.write_text(recipe_file.read_text().replace("accumulate = 2", f"accumulate = 2\n{line}"))
    losses = []
    for recipe in (plain, read_recipe(recipe_file)):
        made = stage(Experiment(recipe, tmp_path / "run"), "unet")
        losses.append(made.loss(made.network, 0).detach())
    assert not torch.equal(*losses)


def test_losses_are_computed_on_the_device_of_the_parameters(recipe_file: Path, tmp_path: Path) -> None:
    """On the meta device, whose tensors do not mix with those of the CPU; the batches are drawn there all the same."""
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "run"))
    for name in ("vae", "unet"):  # the others look into token ids, which have no values there
        made = stage(Experiment(recipe, tmp_path / "run"), name)
        loss = made.loss(made.network.to("meta"), 0)
        assert loss.device.type == "meta", name
        assert len(loss) == made.settings.batch


def test_crops_are_parts_of_their_pictures() -> None:
    pixels = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float()
    parts = cropped(pixels, 4, generator(1))
    assert parts.shape == (2, 3, 4, 4)
    for part, picture in zip(parts, pixels, strict=True):
        y, x = divmod(int(part[0, 0, 0]) % 64, 8)
        assert torch.equal(part, picture[:, y : y + 4, x : x + 4])
    assert cropped(pixels, None, generator(1)) is pixels
    assert cropped(pixels, 8, generator(1)) is pixels


def test_image_encoder_stage_with_a_new_tower_and_more_styles(
    icon_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:  # fmt: skip
    recipe = icon_recipe(styles=STYLES[:1], variants=2)
    recipe = replace(recipe, data=replace(recipe.data, folders=recipe.data.folders[:1]))
    list(run(recipe, tmp_path / "run"))
    first = Experiment(recipe, tmp_path / "run")
    own = ConvConfig(size=32, widths=(4, 8, 16), projection=first.clip.vision.config.projection)
    encoder = ImageEncoderRecipe(
        training=Settings(steps=4, batch=8, lr=1e-3, warmup=1), network=own,
        folders=(str(tmp_path / STYLES[1]),), styles=STYLES[1:], rotation=10.0, kept_patches=0.5,
    )  # fmt: skip
    recipe = replace(recipe, image_encoder=encoder)
    assert {progress.stage for progress in run(recipe, tmp_path / "run")} == {"image_encoder"}
    experiment = Experiment(recipe, tmp_path / "run")
    wider = load_dataset(recipe.with_image_encoder_data, "pairs")
    assert isinstance(wider, IconScenes)
    assert wider.styles == STYLES
    assert wider.icons.styles.unique().tolist() == [0, 1]
    assert experiment.pair.clip.vision.config == own
    assert open_pair(tmp_path / "run" / "model").clip.vision.config == own
    assert experiment.pair.clip.vision.norms[0].mean.abs().sum() > 0, "what its norms have seen comes along"
    drawn = gradina.load(tmp_path / "run" / "model", device="cpu", dtype="fp32").text.state_dict()
    paired = experiment.pair.clip.text.state_dict()
    moved = {name for name, value in drawn.items() if not torch.equal(paired[name], value)}
    assert not moved - {"projection.weight"}, "the pair's words are those that the U-Net reads"


def test_run_resumes_in_any_stage(icon_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The dataset is made on first use, whichever stage begins."""
    recipe, whole, parts = icon_recipe(variants=2), tmp_path / "whole", tmp_path / "parts"
    list(run(recipe, whole))
    for name in ("vae", "clip", "unet"):
        running = run(recipe, parts)
        next(progress for progress in running if progress.stage == name)
        running.close()
    list(run(recipe, parts))
    for part in ("unet", "vae", "text_encoder", "clip"):
        (one,), (other,) = ([*(folder / "model" / part).glob("*.safetensors")] for folder in (whole, parts))
        assert one.read_bytes() == other.read_bytes(), part


def test_phase_with_other_scales_and_offsets(icon_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The same things in the same order, on the same grounds, and so with the same words; larger, and in the middle."""
    recipe = icon_recipe()
    (phase,) = recipe.unet.training
    again = replace(phase, smallest=0.98, jitter=0.0)
    recipe = replace(recipe, unet=replace(recipe.unet, training=(phase, again)))
    list(run(recipe, tmp_path / "run"))
    experiment = Experiment(recipe, tmp_path / "run")
    wide, steady = experiment.latents()[0], experiment.latents(None, {"smallest": 0.98, "jitter": 0.0})[0]
    assert wide.shape == steady.shape
    assert (tmp_path / "run" / "latents-smallest-0.98-places-0.safetensors").is_file()
    icons = len(experiment.data.icons)  # type: ignore[attr-defined]
    plan = experiment.data.plan  # type: ignore[attr-defined]
    same = [row for row in range(0, len(wide), icons) if plan["background"][row] == 0 and plan["second"][row] < 0]
    assert len(same) > 1
    assert steady[same].var(0).mean() < 0.01 * wide[same].var(0).mean()
    stages = [stage(experiment, name) for name in ("unet", "unet-2")]
    losses = [made.loss(stages[0].network, 0).mean().item() for made in stages]
    assert losses[0] != losses[1]


def test_phase_with_the_first_things_alone(
    icon_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what the model draws in the end: its card names no others, though it has words for all."""
    recipe = icon_recipe(scenes=0.5)
    (phase,) = recipe.unet.training
    assert recipe.drawn == recipe
    recipe = replace(recipe, unet=replace(recipe.unet, training=(phase, replace(phase, classes=2))))
    data, drawn = load_dataset(recipe), load_dataset(recipe.drawn)
    assert isinstance(data, IconScenes)
    assert isinstance(drawn, IconScenes)
    assert (len(data.words.names), drawn.words.names) == (6, ("red-apple", "owl"))
    shown = data.rows_of_first(2)
    things = data.icons.things[torch.stack([data.plan["first"], data.plan["second"]])]
    alone = data.plan["second"] < 0
    assert ((things[0] < 2) & (alone | (things[1] < 2))).nonzero()[:, 0].tolist() == shown.tolist()
    assert 0 < len(shown) < len(data) / 3

    list(run(recipe, tmp_path / "run"))
    asked: list[Tensor] = []
    made = stage(Experiment(recipe, tmp_path / "run"), "unet-2")
    monkeypatch.setattr(
        IconScenes, "captions", lambda data, rows, key: (asked.append(rows), ([""] * len(rows), rows))[1]
    )
    for k in range(20):
        made.loss(made.network, k)
    assert set(torch.cat(asked).tolist()) <= set(shown.tolist())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "It has words for 2 things: a red apple, an owl." in card
