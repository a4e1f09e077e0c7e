"""The command line as a whole: verbs, help, one line for every mistake, notes on standard error."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import gradina
from gradina import Picture, Request
from gradina.apps.cli.main import main
from gradina.pipeline import load as loading
from gradina.pipeline.model import StableDiffusion
from gradina.tasks import retrieval
from gradina.tasks.codec import Latents
from gradina.weights import convert as weights_convert

RECIPE = Path(__file__).parents[3] / "recipes" / "digits.toml"


def names(room: Path) -> list[str]:
    return sorted(p.name for p in room.iterdir())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradina {gradina.__version__}\n"


def test_help_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Draw pictures from prompts." in capsys.readouterr().out


WRONG = [
    (["x", "-o", "photo.png", "-i", "photo.png"], "--output: got photo.png, which is also --init-image"),
    (["x", "-o", "x.png", "--strip", "x.png"], "--output: got x.png, which is also --strip; give another name"),
    (["encode", "photo.png", "-o", "photo.png"], "--output: got photo.png, a picture's name, for latents"),
    (["x", "--threads", "9999999"], "threads: got 9999999, expected 1 to"),
    (["x", "-W", "8192", "-H", "8192"], "width, height: got 8192 x 8192, expected at most 16.8 megapixels"),
    (["push", "digits", "noslash"], 'noslash: is no name of the hub; expected "owner/name"'),
    (["x", "--sampler", "eulr"], "sampler: there is no 'eulr'; did you mean 'euler'? (choices: ddpm, ddim"),
    (["x", "--schedule", "none"], "schedule: there is no 'none' (choices: leading"),
    (["x", "--width", "65"], "width: got 65, expected a multiple of 8"),
    (["x", "--strength", "1.5"], "strength: got 1.5, expected a number from 0 to 1"),
    (["x", "--steps", "0"], "steps: got 0, expected a whole number from 1"),
    (["x", "--steps", "many"], "Invalid value for '--steps'"),
    (["x", "--mask-image", "photo.png"], "mask_image: got a mask without an init_image"),
    (["x", "-i", "nothing.png"], "init_image: nothing.png does not exist"),
    (["x", "-i", "text.txt"], "init_image: text.txt is not a picture"),
    (["x", "-o", "x.bmp"], "--output: got x.bmp, expected a name that ends in .png"),
    (["x", "-o", "/dev/full"], "--output: got /dev/full, expected a name that ends in .png"),
    (["x", "-o", ""], "--output: got an empty text, expected PATH"),
    (["x", "--model", ""], "--model: got an empty text, expected MODEL"),
    (["x", "--lora", "a.safetensors", "--lora", ""], "--lora: got an empty text, expected FILE[:SCALE]"),
    (["again", ""], "picture: got an empty text, expected PICTURE"),
    (["convert", "", "x"], "source: got an empty text, expected SOURCE"),
    (["x", "-o", "nowhere/x.png"], "--output: there is no folder nowhere; make it first"),
    (["x", "--tiny", "taesd"], "--tiny: got taesd, but no --film and no --strip"),
    (["x", "--tiny", "nowhere", "--film", "x.gif", "-m", "digits"], "nowhere: there is no such tiny decoder"),
    (["x", "--film", "x.mp4"], "--film: got x.mp4, expected a name that ends in .gif"),
    (["x", "--grid", "guidance=1,2"], "--grid: there is no 'guidance'"),
    (["x", "--grid", "steps"], "--grid: got 'steps', expected FIELD=A,B"),
    (["x", "--grid", "steps=1,x"], "steps: got 'x', expected a number"),
    (["x", "--grid", "steps=1", "--grid", "steps=2"], "--grid: got steps, steps; expected one field, or two"),
    (["x", "--lora", ":0.5"], "loras: got ':0.5', which names no file; expected FILE or FILE:SCALE"),
    (["x", "--edit", ":0.5"], "edit: got ':0.5', which names no file"),
    (["x", "--grid", "loras=a.safetensors:1+:0.5"], "loras: got ':0.5', which names no file"),
    (["x", "--grid", "width=64,65"], "width: got 65, expected a multiple of 8"),
    (["x", "y", "--grid", "steps=1,2"], "--grid: give one prompt and one image"),
    (["x", "--guidance-interval", "3"], "guidance_interval: got '3', expected LOW:HIGH"),
    (["x", "-m", "nowhere"], "nowhere"),
    (["x", "-m", "text.txt"], "text.txt"),
    (["x", "--device", "none"], "device: none cannot be used here"),
    (["x", "--low-memory", "--engine", "compile"], "low_memory: is for the CPU and engine eager"),
    (["x", "--reuse", "0"], "reuse: got 0, expected a whole number from 1"),
    (["x", "--dtype", "fp8"], "dtype: there is no 'fp8' (choices: fp32, bf16, fp16)"),
    (["x", "--samplr", "euler"], "No such option: --samplr"),
    (["generate"], "Missing argument"),
    (["again", "photo.png"], "photo.png carries no request"),
    (["info", "nothing.png"], "nothing.png does not exist"),
    (["info", "text.txt"], "text.txt is not a picture"),
    (["encode", "text.txt"], "text.txt is not a picture"),
    (["decode", "text.txt"], "text.txt: not a file of latents"),
    (["decode", "nothing"], "nothing: there is no such file"),
    (["convert", "nowhere", "x.safetensors"], "nowhere"),
    (["train", "nothing.toml"], "nothing.toml: there is no such recipe"),
    (["train", "text.txt"], "text.txt: not a TOML file"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, room: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (room / "text.txt").write_text("no picture, no = model")
    before = names(room)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("gradina: ")
    assert said.err.count("\n") == 1
    assert names(room) == before


def test_a_mistake_in_a_new_process_prints_no_traceback(room: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gradina.apps.cli.main", "x", "--sampler", "none"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_stops_with_one_line(
    room: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradina.pipeline.generate.run_sampler", interrupted)
    assert main(["x", "-m", model_folder]) == 130
    assert capsys.readouterr().err == "gradina: stopped\n"
    assert names(room) == []


def test_warnings_are_printed_once_as_notes_on_stderr(
    room: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        for _ in range(2):
            logging.getLogger("gradina.weights").warning("x.txt: is read\nas %s", "cp1252")
        logging.getLogger("gradina.weights").info("nothing")
        raise gradina.GradinaError("enough")

    monkeypatch.setattr(loading, "load", load)
    assert main(["a seven", "-m", model_folder]) == 2
    assert capsys.readouterr().err == "gradina: note: x.txt: is read as cp1252\ngradina: enough\n"
    assert not logging.getLogger("gradina").handlers


def test_options_without_effect_are_noted(
    room: Path, tiny_model: Callable[..., StableDiffusion], capsys: pytest.CaptureFixture[str]
) -> None:
    from gradina.weights.formats.ldm import write_file

    write_file(tiny_model("sd1"), "model.safetensors")
    asked = ["a fox", "-m", "model.safetensors", "--seed", "1", "--steps", "2", "-o", "a.png"]
    assert main([*asked, "--variant", "fp16", "--prediction", "eps"]) == 0
    assert capsys.readouterr().err == "gradina: note: variant: 'fp16' has no effect on a single file; leave it out\n"
    assert main([*asked, "--prediction", "v"]) == 0
    said = "model.safetensors: states that it predicts eps; drawing as if it were v, as asked"
    assert capsys.readouterr().err == f"gradina: note: {said}\n"


PLACES = ("text.txt/x.png", "nowhere/x.png", "x" * 300 + ".png")  # where no file can be written


WRITERS = [
    *(["x", "-o", place] for place in PLACES),
    ["x", "-o", "text.txt/"],
    ["x", "-o", "text.txt/deeper/"],
    ["x", "-o", "made/" + "x" * 300 + "/"],
    ["x", "--grid", "steps=1,2", "-o", "text.txt/"],
    *(["x", option, place] for option in ("--film", "--strip") for place in PLACES),
    *(["again", "drawn.png", "-o", place] for place in PLACES),
    *(["encode", "photo.png", "-o", place.replace(".png", ".latents")] for place in PLACES),
    *(["decode", "photo.latents", "-o", place] for place in PLACES),
    *(["search", ".", "x", "--sheet", place] for place in PLACES),
    *(["convert", "digits", place.replace(".png", ".safetensors")] for place in PLACES),
    *(["convert", "digits", place.removesuffix(".png")] for place in PLACES),
    ["convert", "digits", "text.txt"],
    ["convert", "digits", "."],
    ["train", "recipe.toml", "--out", "text.txt/run"],
    *([verb, "pictures", "--out", "text.txt/run"] for verb in ("finetune", "dreambooth", "invert")),
    ["imagic", "photo.png", "x", "--out", "text.txt/run"],
    *(["bench", option, place] for option, place in (("-o", "text.txt/x.json"), ("--plot", "nowhere/x.png"))),
    ["tune", "--plot", "text.txt/x.png"],
]


@pytest.mark.parametrize("arguments", WRITERS, ids=lambda value: " ".join(value)[:40])
def test_unwritable_paths_are_refused_before_anything_is_loaded(
    arguments: list[str],
    room: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("something was read")

    for place, name in ((loading, "load"), (retrieval, "open_pair"), (weights_convert, "convert")):
        monkeypatch.setattr(place, name, nothing)
    Picture(Image.new("RGB", (8, 8)), 0, Request(seed=0)).save("drawn.png")
    Latents(torch.zeros(4, 8, 8), 64, 64).save("photo.latents")
    (room / "text.txt").touch()
    (room / "pictures").mkdir()
    shutil.copy(photo, room / "pictures" / "a boat.png")
    shutil.copy(RECIPE, room / "recipe.toml")
    before = names(room)
    assert main(arguments) == 2
    err = "".join(line for line in capsys.readouterr().err.splitlines(True) if ": note: " not in line)
    assert err.count("\n") == 1
    assert re.search("cannot be written|there is no folder|is not replaced", err), err
    assert names(room) == before
