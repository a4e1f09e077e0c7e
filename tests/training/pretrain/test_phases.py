"""A part learns in several phases, and in stages that a recipe may add: what each hands on, and leaves as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gradina
from gradina.training.pretrain.experiment import Workshop
from gradina.training.pretrain.recipes import read_recipe
from gradina.training.pretrain.run import run

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


def test_the_unet_learns_in_phases(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    recipe = read_recipe(recipe_file)
    stages = [(p.stage, p.step.step) for p in run(recipe, tmp_path / "run")]
    assert stages[12:] == [*(("unet", i) for i in range(1, 5)), *(("unet-2", i) for i in range(1, 5))]
    shop = Workshop(recipe, tmp_path / "run")
    small, whole = shop.latents(16)[0], shop.latents()[0]
    assert small.shape[2:] == (2, 2)
    assert whole.shape[2:] == (4, 4)
    assert whole.std().item() == pytest.approx(1, rel=1e-4), "the scale of the latents is that of whole pictures"
    assert gradina.load(tmp_path / "run" / "model").defaults.width == 32


def test_a_phase_goes_on_from_the_one_before(recipe_file: Path, tmp_path: Path) -> None:
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


def test_a_phase_may_be_put_behind(recipe_file: Path, tmp_path: Path) -> None:
    """What was learnt before a phase was thought of still counts."""
    in_phases(recipe_file)
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    recipe_file.write_text(recipe_file.read_text().replace("[defaults]", PHASES.partition("\n\n")[2] + "\n[defaults]"))
    assert {p.stage for p in run(read_recipe(recipe_file), tmp_path / "run")} == {"unet-3"}


def test_a_finished_phase_stands_for_those_before_it(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    (tmp_path / "run" / "unet" / "weights.safetensors").unlink()
    assert list(run(read_recipe(recipe_file), tmp_path / "run")) == []


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


def test_words_learn_what_they_look_like_before_the_unet(recipe_file: Path, tmp_path: Path) -> None:
    before = read_recipe(recipe_file)
    for _ in run(before, tmp_path / "run"):
        pass
    recipe_file.write_text(recipe_file.read_text() + WORDS)
    recipe = read_recipe(recipe_file)
    (tmp_path / "run" / "unet" / "weights.safetensors").unlink()
    taken = [progress.stage for progress in run(recipe, tmp_path / "run")]
    assert taken == ["words"] * 4 + ["unet"] * 8, "autoencoder and pair stay what they are"
    shop = Workshop(recipe, tmp_path / "run")
    paired, taught = shop.clip.text.state_dict(), shop.text.state_dict()
    drawn = gradina.load(tmp_path / "run" / "model", device="cpu").text.state_dict()
    assert not torch.equal(paired["token.weight"], taught["token.weight"])
    assert all(torch.equal(value, taught[name]) for name, value in drawn.items()), "the U-Net reads what they learnt"
    assert torch.equal(shop.pair.clip.text.token.weight, paired["token.weight"])
    assert (tmp_path / "run" / "words" / "000004.png").is_file()
    assert before.words is None


VISION = """
[vision.training]
steps = 5
batch = 8
lr = 1e-3
warmup = 1
"""


def test_the_image_tower_learns_on_while_words_stay(recipe_file: Path, tmp_path: Path) -> None:
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    before = Workshop(read_recipe(recipe_file), tmp_path / "run")
    recipe_file.write_text(recipe_file.read_text() + VISION)
    recipe = read_recipe(recipe_file)
    assert [p.stage for p in run(recipe, tmp_path / "run")] == ["vision"] * 5, "no other stage depends on it"
    after = Workshop(recipe, tmp_path / "run")
    for name, value in before.pair.clip.state_dict().items():
        moved = not torch.equal(value, after.pair.clip.state_dict()[name])
        assert moved == (name.startswith("vision.") or name in ("text.projection.weight", "logit_scale")), name


def test_the_text_tower_learns_along_where_a_phase_says_so(recipe_file: Path, tmp_path: Path) -> None:
    in_phases(recipe_file)
    before, found, after = recipe_file.read_text().rpartition("[[unet.training]]\n")
    recipe_file.write_text(f"{before}{found}text_rate = 0.5\nwarmup = 0\n{after}")
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "run"))
    shop = Workshop(recipe, tmp_path / "run")
    first, second = (shop.learnt(shop.new_painter, name).text.state_dict() for name in ("unet", "unet-2"))
    drawn, paired = gradina.load(tmp_path / "run" / "model", device="cpu").text, shop.pair.clip.text
    moved = {name for name, value in shop.clip.text.state_dict().items() if not torch.equal(second[name], value)}
    assert {"token.weight", "blocks.0.attn.q.weight"} <= moved
    assert "projection.weight" not in moved, "what compares words with pictures is not asked"
    for name, value in shop.clip.text.state_dict().items():
        assert torch.equal(first[name], value), name
        assert torch.equal(paired.state_dict()[name], value), name
    for name, value in drawn.state_dict().items():
        assert torch.equal(second[name], value), name


def test_the_autoencoder_learns_in_phases(recipe_file: Path, tmp_path: Path) -> None:
    whole = recipe_file.read_text()
    _, found, rest = whole.partition("[vae.training]\nsteps = 6\nbatch = 4\nlr = 1e-3\nwarmup = 2\n")
    assert found
    one = "[[vae.training]]\nsteps = 3\nbatch = 4\nlr = 1e-3\nwarmup = 0\n"
    recipe_file.write_text(whole.replace(found, f"{one}\n{one}resized = 1.0\n"))
    recipe = read_recipe(recipe_file)
    taken = [progress.stage for progress in run(recipe, tmp_path / "run")]
    assert taken[:6] == ["vae"] * 3 + ["vae-2"] * 3
    shop = Workshop(recipe, tmp_path / "run")
    first, second = (shop.learnt(shop.new_vae, name).state_dict() for name in ("vae", "vae-2"))
    moves = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert 0 < moves.max() < 4e-3, "the second goes on from the first"
    assert all(torch.equal(value, second[name]) for name, value in shop.vae.state_dict().items())
    assert rest


def test_a_decoder_that_learns_on_leaves_the_latents_and_the_unet_as_they_are(
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
    shop = Workshop(after, tmp_path / "run")
    old, new = (shop.learnt(shop.new_vae, name).state_dict() for name in ("vae", "vae-2"))
    same = {name.partition(".")[0]: True for name in old}
    for name, value in old.items():
        same[name.partition(".")[0]] &= torch.equal(value, new[name])
    assert same == {"encoder": True, "quant": True, "post_quant": False, "decoder": False}
    shipped = gradina.load(tmp_path / "run" / "model", device="cpu").vae.state_dict()
    assert torch.equal(shipped["decoder.conv_out.weight"], new["decoder.conv_out.weight"])
