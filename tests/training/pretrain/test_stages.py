"""The stages: what each trains, starts from and does not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gradina
from gradina.training.data.dataset import augment, generator
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.recipes import read_recipe
from gradina.training.pretrain.run import run
from gradina.training.pretrain.stages import cropped, stage

PHASES = """
[[unet.training]]
pixels = 16
steps = 4
batch = 4
lr = 1e-3

[[unet.training]]
steps = 4
batch = 4
lr = 1e-3
"""


def in_phases(recipe_file: Path) -> None:
    """The U-Net learns at half the size first."""
    head, _, rest = recipe_file.read_text().partition("[unet.training]")
    recipe_file.write_text(head + PHASES + "\n[defaults]" + rest.partition("[defaults]")[2])


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


WORDS = """
[words]
width = 16
layers = 1
heads = 2

[words.training]
steps = 4
batch = 8
lr = 1e-2
warmup = 0
"""


def test_the_text_tower_is_pretrained_before_the_unet(recipe_file: Path, tmp_path: Path) -> None:
    before = read_recipe(recipe_file)
    for _ in run(before, tmp_path / "run"):
        pass
    recipe_file.write_text(recipe_file.read_text() + WORDS)
    recipe = read_recipe(recipe_file)
    (tmp_path / "run" / "unet" / "weights.safetensors").unlink()
    taken = [progress.stage for progress in run(recipe, tmp_path / "run")]
    assert taken == ["words"] * 4 + ["unet"] * 8, "autoencoder and pair stay what they are"
    experiment = Experiment(recipe, tmp_path / "run")
    paired, taught = experiment.clip.text.state_dict(), experiment.text.state_dict()
    drawn = gradina.load(tmp_path / "run" / "model", device="cpu").text.state_dict()
    assert not torch.equal(paired["token.weight"], taught["token.weight"])
    assert all(torch.equal(value, taught[name]) for name, value in drawn.items()), "the U-Net reads what they learnt"
    assert torch.equal(experiment.pair.clip.text.token.weight, paired["token.weight"])
    assert (tmp_path / "run" / "words" / "000004.png").is_file()
    assert before.words is None


VISION = """
[vision.training]
steps = 5
batch = 8
lr = 1e-3
warmup = 1
"""


def test_the_vision_stage_trains_the_image_tower_and_freezes_the_text_tower(recipe_file: Path, tmp_path: Path) -> None:
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    before = Experiment(read_recipe(recipe_file), tmp_path / "run")
    recipe_file.write_text(recipe_file.read_text() + VISION)
    recipe = read_recipe(recipe_file)
    assert [p.stage for p in run(recipe, tmp_path / "run")] == ["vision"] * 5, "no other stage depends on it"
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
        experiment.finished(experiment.networks.text_to_latent, name).text.state_dict() for name in ("unet", "unet-2")
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
    plain, more = read_recipe(recipe_file), "[clip]\nkept = 0.5\nnaming = true\nturned = 10.0\n\n[clip.text]"
    recipe_file.write_text(recipe_file.read_text().replace("[clip.text]", more))
    naming = read_recipe(recipe_file)
    losses = []
    for recipe, folder in ((plain, "plain"), (naming, "naming")):
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


def test_augmented_pictures_are_rotated_by_a_few_degrees() -> None:
    bar = torch.full((64, 3, 32, 32), -1.0)
    bar[:, :, 12:20, 2:30] = 1.0
    seen = augment(bar, 20, generator(2))
    assert seen.shape == bar.shape
    assert seen.abs().max() <= 1
    assert len({round(picture.sum().item(), 2) for picture in seen}) > 60, "each otherwise"
    assert (seen[:, :, 15:17, 15:17] > 0.5).all(), "the middle stays in the middle"
    assert (seen[:, :, :4, 15:17] < -0.5).all()
    mass = (seen[:, 0] + 1).clamp(0, 1)
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    angle = 0.5 * torch.atan2(2 * (mass * x * y).sum((1, 2)), (mass * (x**2 - y**2)).sum((1, 2)))
    assert 10 < angle.abs().max().rad2deg() < 26
    assert augment(bar, 0, generator(2)) is bar


def test_augmentation_hardly_changes_colours() -> None:
    red = torch.tensor([1.0, -0.8, -0.8])[None, :, None, None].expand(32, 3, 8, 8)
    seen = augment(red, 20, generator(3))
    assert (seen[:, 0] > 0.5).all()
    assert (seen[:, 1:] < -0.3).all()
