"""A run of a recipe: it makes a model, and an interrupted run ends with the bits of an uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gradina
from gradina.apps.cli.main import main
from gradina.errors import RecipeError
from gradina.images.tensor import to_image
from gradina.tasks.retrieval import embed_pictures, embed_texts, open_pair, scores
from gradina.training.checkpoint import steps_done
from gradina.training.data.sources import load_dataset
from gradina.training.pretrain.experiment import Experiment
from gradina.training.pretrain.folder import RunFolder
from gradina.training.pretrain.recipes import read_recipe
from gradina.training.pretrain.run import Log, run

STAGES = ("vae", "clip", "unet")


def weights(folder: Path) -> dict[str, bytes]:
    """All that a run has learnt, byte by byte."""
    files = [p for p in sorted(folder.rglob("*.safetensors")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_run_makes_a_model_that_draws(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    progress = list(run(recipe, tmp_path / "run"))
    assert [(p.stage, p.step.step, p.steps) for p in progress] == [
        *(("vae", i, 6) for i in range(1, 7)),
        *(("clip", i, 6) for i in range(1, 7)),
        *(("unet", i, 8) for i in range(1, 9)),
    ]
    model = gradina.load(tmp_path / "run" / "model")
    assert model.defaults == recipe.defaults
    assert model.prediction == "v"
    (picture,) = gradina.generate(model, gradina.Request(prompt="a zero", seed=1))
    assert picture.image.size == (32, 32)
    data = load_dataset(recipe)
    z = model.encode(data.pixels(torch.arange(len(data))))
    assert 0.5 < z.std() < 2, "the scale of the latents is measured"


def test_a_run_writes_logs_samples_and_weights(recipe_file: Path, tmp_path: Path) -> None:
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    for stage, last in zip(STAGES, (6, 6, 8), strict=True):
        folder = tmp_path / "run" / stage
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == last
        assert {"step", "loss", "lr", "seconds"} <= rows[-1].keys()
        assert (folder / f"{last:06}.png").is_file()
        learnt = load_file(folder / "weights.safetensors")
        assert {value.dtype for value in learnt.values()} == {torch.float16}
        assert not (folder / "state.safetensors").exists(), "what a finished stage hands on is enough"


def test_the_model_has_the_weights_of_the_stages(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "run"))
    experiment, model = Experiment(recipe, tmp_path / "run"), gradina.load(tmp_path / "run" / "model", dtype="fp32")
    for ours, theirs in ((experiment.vae, model.vae), (experiment.clip.text, model.text)):
        read = theirs.state_dict()
        assert all(torch.equal(value, read[name]) for name, value in ours.state_dict().items() if name in read)


def test_the_decoder_learns_after_the_unet_and_nothing_else_changes(recipe_file: Path, tmp_path: Path) -> None:
    text = recipe_file.read_text()
    plain = list(run(read_recipe(recipe_file), tmp_path / "plain"))
    recipe_file.write_text(text + "\n[decoder.training]\nsteps = 3\nbatch = 4\nlr = 1e-3\ninterval = [0.1, 0.8]\n")
    progress = list(run(read_recipe(recipe_file), tmp_path / "run"))
    assert [p.stage for p in progress] == [*(p.stage for p in plain), "decoder", "decoder", "decoder"]
    before, after = (gradina.load(tmp_path / name / "model", dtype="fp32") for name in ("plain", "run"))
    for one, other in ((before.unet, after.unet), (before.text, after.text), (before.vae, after.vae)):
        changed = {name for name, x in other.state_dict().items() if not torch.equal(x, one.state_dict()[name])}
        decodes = other is after.vae
        assert all(name.startswith(("decoder.", "post_quant.")) for name in changed)
        assert bool(changed) == decodes


def test_the_contrastive_pair_goes_with_the_model(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "run"))
    experiment, pair = Experiment(recipe, tmp_path / "run"), open_pair(tmp_path / "run" / "model")
    assert pair.phrases[0][:2] == ("a handwritten zero", "a handwritten one")
    pixels, texts = experiment.data.pixels(torch.arange(4)), ["a handwritten zero", "the digit 7"]
    with torch.no_grad():
        expected = experiment.clip(experiment.tokenizer(texts), pixels).T
    ours = scores(pair, embed_pictures(pair, [to_image(p) for p in pixels]), embed_texts(pair, texts))
    assert torch.allclose(ours, expected, atol=1e-3)
    assert "In `clip/` is the contrastive pair" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_closing_a_run_keeps_its_last_step(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    running = run(recipe, tmp_path / "run")
    for _ in range(3):
        next(running)
    running.close()
    path = tmp_path / "run" / "vae" / "state.safetensors"
    assert steps_done(path, RunFolder(recipe, tmp_path).fingerprint("vae")) == 3


def test_a_closed_run_resumes_bit_identically(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "whole"))
    at = random.Random(1)
    while True:  # begun again and again, closed after one to three steps
        running = run(recipe, tmp_path / "parts")
        count = at.randint(1, 3)
        taken = [step for step, _ in zip(running, range(count), strict=False)]
        running.close()
        if len(taken) < count:
            break
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_a_state_of_another_recipe_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    recipe_file.write_text(recipe_file.read_text().replace("kl_weight = 1e-4", "kl_weight = 1e-3"))
    with pytest.raises(RecipeError, match=r"is of another recipe, other pictures or settings; choose another --out"):
        next(run(read_recipe(recipe_file), tmp_path / "run"))


def test_a_changed_stage_is_trained_again_alone(recipe_file: Path, tmp_path: Path) -> None:
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    (tmp_path / "run" / "unet" / "weights.safetensors").unlink()
    recipe_file.write_text(recipe_file.read_text().replace('prediction = "v"', 'prediction = "eps"'))
    assert {p.stage for p in run(read_recipe(recipe_file), tmp_path / "run")} == {"unet"}


def test_a_killed_run_resumes_bit_identically(recipe_file: Path, tmp_path: Path) -> None:
    """kill -9 in each stage, through the command line; after it the state on disk is whole."""
    recipe_file.write_text(
        recipe_file.read_text().replace("steps = 6", "steps = 40").replace("steps = 8", "steps = 40")
    )
    recipe = read_recipe(recipe_file)
    command = [sys.executable, "-m", "gradina.apps.cli.main", "train", str(recipe_file), "--threads", "1", "--quiet"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(run(recipe, whole))

    def done(stage: str) -> int:
        return steps_done(parts / stage / "state.safetensors", RunFolder(recipe, parts).fingerprint(stage))

    for stage in STAGES:
        process = subprocess.Popen([*command, "--out", str(parts)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while done(stage) < 5:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(random.random() / 20)
        process.kill()
        process.communicate()
        assert 5 <= done(stage) < 40
    subprocess.run([*command, "--out", str(parts)], check=True, capture_output=True)
    assert weights(whole) == weights(parts)
    for stage in STAGES:
        rows = (parts / stage / "log.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [10, 20, 30, 40]


def test_an_interrupted_run_prints_how_to_resume(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("steps = 6\nbatch = 4", "steps = 2000\nbatch = 4"))
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "gradina.apps.cli.main", "train", str(recipe_file), "--out", str(out), "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "vae" / "state.safetensors").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to resume" in printed
    assert (
        steps_done(out / "vae" / "state.safetensors", RunFolder(read_recipe(recipe_file), out).fingerprint("vae")) >= 1
    )


def test_the_global_generator_is_never_touched(recipe_file: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    assert torch.equal(before, torch.get_rng_state())


def test_slow_preparations_are_printed_unless_quiet(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_file), "--out", str(tmp_path / "run")]) == 0
    assert "encodes 16 pictures\n" in capsys.readouterr().err
    assert main(["train", str(recipe_file), "--out", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_snapshots_keep_the_averaged_weights(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text("snapshots = true\n" + recipe_file.read_text())
    list(run(read_recipe(recipe_file), tmp_path / "run"))
    kept = tmp_path / "run" / "unet"
    assert sorted(p.name for p in kept.glob("0*.safetensors")) == ["000004.safetensors", "000008.safetensors"]
    assert (kept / "000008.safetensors").read_bytes() == (kept / "weights.safetensors").read_bytes()
    early, late = (load_file(kept / f"00000{i}.safetensors")["unet.conv_in.weight"] for i in (4, 8))
    assert (early != late).any()


def test_two_processes_cannot_train_in_one_folder(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    first = run(recipe, tmp_path / "run")
    next(first)
    with pytest.raises(RecipeError, match=r"run: somebody trains here already; wait, or choose another --out folder"):
        next(run(recipe, tmp_path / "run"))
    first.close()
    assert next(run(recipe, tmp_path / "run")).step.step == 2


def test_the_card_omits_a_stage_without_a_log(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file)
    list(run(recipe, tmp_path / "run"))
    (tmp_path / "run" / "clip" / "log.jsonl").unlink()
    list(run(recipe, tmp_path / "run"))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| vae |" in card
    assert "| unet |" in card
    assert "| clip |" not in card
    assert "It has words for 10 things: a handwritten zero, a handwritten one" in card


def test_a_damaged_log_keeps_its_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe{\n{"step": 9}\n')
    Log(tmp_path / "log.jsonl", 3)
    assert (tmp_path / "log.jsonl").read_bytes() == b'{"step": 1}\n'
