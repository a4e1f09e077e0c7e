"""The command line as a person types it: what is drawn, where it is put, and one line for every mistake."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gradina
from gradina import Picture, Request, files
from gradina.apps.cli.generate import is_other
from gradina.apps.cli.main import VERBS, app, main
from gradina.images.picture import save_picture
from gradina.pipeline import load as loading
from gradina.pipeline.model import StableDiffusion
from gradina.tasks import retrieval
from gradina.tasks.codec import Latents
from gradina.weights import convert as weights_convert

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.toml"


@pytest.fixture(scope="session")
def model_folder(tiny_model: Callable[..., StableDiffusion], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model as a folder on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("sd1").save(folder)
    return str(folder)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo(room: Path) -> Path:
    """A picture of 61 x 45 pixels."""
    values = np.linspace(0, 255, 61 * 45 * 3).reshape(45, 61, 3).astype(np.uint8)
    Image.fromarray(values).save(room / "photo.png")
    return room / "photo.png"


def names(room: Path) -> list[str]:
    return sorted(p.name for p in room.iterdir())


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_a_prompt_draws(room: Path, model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a seven", "-o", "seven.png", "-m", model_folder, "--seed", "3"]) == 0
    assert capsys.readouterr() == ("seven.png\n", "")
    assert names(room) == ["seven.png"]
    assert pixels("seven.png").shape == (64, 64, 3)


def test_generate_is_the_same_verb_spelled_out(room: Path, model_folder: str) -> None:
    rest = ["a seven", "-m", model_folder, "--seed", "3"]
    assert main([*rest, "-o", "a.png"]) == main(["generate", *rest, "-o", "b.png"]) == 0
    assert main(["-o", "c.png", *rest]) == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") == pixels("c.png")).all()


def test_several_pictures_are_told_apart_by_their_seeds(room: Path, model_folder: str) -> None:
    assert main(["one", "two", "-k", "2", "--seed", "5", "-m", model_folder, "-o", "x.png"]) == 0
    assert names(room) == [f"x-{seed}.png" for seed in (5, 6, 7, 8)]
    main(["two", "--seed", "7", "-m", model_folder, "-o", "alone.png"])
    assert np.abs(pixels("x-7.png").astype(int) - pixels("alone.png")).max() <= 1


def test_a_folder_is_filled(room: Path, model_folder: str) -> None:
    main(["A red fox!", "--seed", "5", "-m", model_folder, "-o", "made/"])
    main(["A red fox!", "--seed", "5", "-m", model_folder, "-o", "made/"])
    assert names(room / "made") == ["a-red-fox-5-2.png", "a-red-fox-5.png"]


def test_without_an_output_nothing_is_replaced(room: Path, model_folder: str) -> None:
    for _ in range(2):
        main(["seven", "--seed", "5", "-m", model_folder])
    assert names(room) == ["seven-5-2.png", "seven-5.png"]


def test_without_a_seed_pictures_differ(room: Path, model_folder: str) -> None:
    for name in ("a.png", "b.png"):
        main(["seven", "-m", model_folder, "-o", name])
    assert (pixels("a.png") != pixels("b.png")).any()


@pytest.mark.parametrize("name", ["x.png", "x.webp"])
def test_again_makes_the_same_pixels(room: Path, model_folder: str, name: str) -> None:
    options = ["--steps", "4", "-g", "2.5", "--sampler", "euler_ancestral", "--seed", "9", "-n", "blue", "--eta", "0.5"]
    main(["a fox, red", "-m", model_folder, "-o", name, *options])
    assert main(["again", name, "-m", model_folder, "-o", "y.png"]) == 0
    assert (pixels(name) == pixels("y.png")).all()


def test_again_computes_in_the_same_numbers(
    room: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert main(["a cat", "-m", model_folder, "--dtype", "bf16", "-o", "a.png"]) == 0
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert main(["again", "a.png", "--dtype", "fp32", "-o", "c.png"]) == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") != pixels("c.png")).any()
    capsys.readouterr()
    for name, numbers in (("b.png", "bf16"), ("c.png", "fp32")):
        assert main(["info", name]) == 0
        assert re.search(rf"^dtype +{numbers}$", capsys.readouterr().out, re.M)


def test_what_is_pushed_is_not_rounded(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[gradina.StableDiffusion] = []
    monkeypatch.setattr(loading, "push", lambda model, name: pushed.append(model) or name)
    monkeypatch.setenv("GRADINA_DTYPE", "bf16")  # as pictures are drawn where the processor has it
    assert main(["push", model_folder, "me/mine"]) == 0
    file = load_file(Path(model_folder) / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(pushed[0].unet.state_dict()["conv_in.weight"], file["conv_in.weight"].float())


def test_again_of_a_picture_from_a_picture(room: Path, photo: Path, model_folder: str) -> None:
    main(["x", "-m", model_folder, "-i", "photo.png", "--strength", "0.5", "--seed", "1", "-o", "a.png"])
    assert main(["again", "a.png", "-m", model_folder]) == 0
    assert (pixels("a.png") == pixels("a-again.png")).all()


def test_again_knows_the_model_by_its_folder(room: Path, model_folder: str) -> None:
    main(["x", "-m", model_folder, "--seed", "1", "-o", "a.png"])
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert (pixels("a.png") == pixels("b.png")).all()


def test_info_shows_what_a_picture_carries(
    room: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    main(["a fox", "-m", model_folder, "--seed", "9", "-o", "x.png"])
    capsys.readouterr()
    assert main(["info", "x.png"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^prompt +a fox$", said, re.M)
    assert re.search(r"^seed +9$", said, re.M)
    assert main(["info", "x.png", "--json"]) == 0
    assert "a fox" in str(json.loads(capsys.readouterr().out))


def test_a_picture_of_a1111_is_read_and_what_cannot_be_honoured_is_said(
    room: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = "a fox\nNegative prompt: blue\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 4, Size: 64x64, Clip skip: 2"
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save("theirs.png", pnginfo=chunks)
    assert main(["again", "theirs.png", "-m", model_folder, "-o", "ours.png"]) == 0
    assert re.search(r"note: .*[Cc]lip skip", capsys.readouterr().err)
    assert pixels("ours.png").shape == (64, 64, 3)


def test_a_grid_is_one_labelled_picture(room: Path, model_folder: str) -> None:
    rest = ["x", "-m", model_folder, "--steps", "2", "--seed", "1"]
    assert main([*rest, "--grid", "guidance_scale=1,3,7.5", "--grid", "seed=1,2", "-o", "two.png"]) == 0
    assert main([*rest, "--grid", "sampler=ddim,euler", "-o", "one.png"]) == 0
    wide, flat = pixels("two.png"), pixels("one.png")
    assert wide.shape[1] > 3 * 128
    assert wide.shape[0] > 2 * 128
    assert 2 * 128 < flat.shape[1] < wide.shape[1]
    assert names(room) == ["one.png", "two.png"]


def test_prompts_can_be_an_axis(room: Path, model_folder: str) -> None:
    assert main(["x", "-m", model_folder, "--steps", "1", "--grid", "prompt=a cat, red|a dog", "-o", "g.png"]) == 0
    assert pixels("g.png").shape[1] > 2 * 128


def test_film_and_strip_show_a_picture_emerging(room: Path, model_folder: str) -> None:
    rest = ["x", "-m", model_folder, "--steps", "6", "--seed", "1", "-o", "x.png"]
    assert main([*rest, "--film", "f.gif", "--strip", "s.png"]) == 0
    with Image.open("f.gif") as film:
        assert film.n_frames == 7
        film.seek(6)
        last = np.array(film.convert("RGB").resize((64, 64), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(last - pixels("x.png")).mean() < 16, "a GIF has 256 colours"
    assert pixels("s.png").shape[1] > 7 * 128


def test_a_tiny_decoder_draws_all_of_a_film_but_its_end(room: Path, model_folder: str) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny().save_pretrained("taesd")
    rest = ["x", "-m", model_folder, "--steps", "3", "--seed", "1", "-o", "x.png", "--tiny", "taesd"]
    assert main([*rest, "--film", "tiny.apng"]) == 0
    assert main([*rest[:-2], "--film", "whole.apng"]) == 0
    frames = []
    for name in ("tiny.apng", "whole.apng"):
        with Image.open(name) as film:
            assert film.n_frames == 4
            film.seek(1)
            second = np.array(film.convert("RGB")).astype(int)
            film.seek(3)
            frames.append((second, np.array(film.convert("RGB")).astype(int)))
    (rough, end), (second, whole) = frames
    assert np.abs(rough - second).mean() > 3, "random weights know nothing of latents"
    assert np.array_equal(end, whole)


def test_encode_and_decode(room: Path, photo: Path, model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "photo.png", "-m", model_folder, "-o", "photo.latents"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^numbers +\d+\.\d times fewer$", said, re.M)
    assert re.search(rf"^bytes +{(room / 'photo.latents').stat().st_size} \(", said, re.M)
    psnr = float(re.search(r"^PSNR +(-?[\d.]+) dB", said, re.M)[1])  # type: ignore[index]
    assert main(["decode", "photo.latents", "-o", "back.png", "-m", model_folder]) == 0
    a, b = pixels("photo.png").astype(float), pixels("back.png").astype(float)
    assert a.shape == b.shape
    assert 10 * np.log10(255**2 / ((a - b) ** 2).mean()) == pytest.approx(psnr, abs=0.06)


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert re.search(r"^digits +shipped +\d+\.\d MB", capsys.readouterr().out, re.M)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradina {gradina.__version__}\n"


def test_without_arguments_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Draw pictures from prompts." in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained_with_its_default(verb: str) -> None:
    import typer

    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts:
            assert parameter.help, f"{verb} {parameter.name}: no help"
            assert parameter.show_default, f"{verb} {parameter.name}: no default"


@pytest.mark.parametrize("output", ["g.jpg", "g.jpeg", "g.webp", "g.png", "sheets/", "."])
def test_a_grid_is_written_as_its_name_says(room: Path, model_folder: str, output: str) -> None:
    rest = ["a fox", "-m", model_folder, "--steps", "1", "--seed", "1", "--grid", "steps=1,2"]
    assert main([*rest, "-o", output]) == 0
    written = {"sheets/": "sheets/a-fox-grid.png", ".": "a-fox-grid.png"}.get(output, output)
    with Image.open(written) as sheet:
        assert sheet.format == {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(Path(written).suffix, "PNG")
        assert sheet.width > 2 * 128


@pytest.mark.parametrize("name", ["back.png", "back.jpg", "back.webp"])
def test_latents_come_back_as_their_name_says(room: Path, photo: Path, model_folder: str, name: str) -> None:
    main(["encode", "photo.png", "-m", model_folder])
    assert main(["decode", "photo.latents", "-o", name, "-m", model_folder]) == 0
    assert pixels(name).shape == (45, 61, 3)


def test_ctrl_c_while_drawing_is_said(
    room: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradina.pipeline.generate.run_sampler", interrupted)
    assert main(["x", "-m", model_folder]) == 130
    assert capsys.readouterr().err == "gradina: stopped\n"
    assert names(room) == []


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


def test_a_mistake_is_no_traceback_in_a_process_of_its_own(room: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gradina.apps.cli.main", "x", "--sampler", "none"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("output", ["x.png", "x.jpg", "x.webp"])
def test_a_full_disk_is_said_and_nothing_stays(
    output: str, room: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(output).write_bytes(b"as it was")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "_sync", full)
    assert main(["x", "-m", model_folder, "--steps", "1", "-o", output]) == 2
    assert (
        capsys.readouterr().err
        == f"gradina: {output}: cannot be written: the disk is full; make room and write it again\n"
    )
    assert names(room) == [output]
    assert Path(output).read_bytes() == b"as it was"


def test_a_huge_picture_is_refused(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (5000, 4000)).save("huge.png")
    assert main(["x", "-i", "huge.png"]) == 2
    assert "5000 x 4000 pixels, 20.0 megapixels (at most 16.8)" in capsys.readouterr().err


def test_a_grid_names_files_by_their_names_alone() -> None:
    from gradina.apps.cli.grids import axis, cell_label

    name, values = axis("loras=some/where/bear.safetensors:0.5|bear.safetensors:1")
    assert [cell_label(name, value) for value in values] == ["bear 0.5", "bear 1"]
    name, values = axis("concepts=some/where/bear.safetensors|my-bear=a.safetensors+b.safetensors")
    assert [cell_label(name, value) for value in values] == ["bear", "my-bear\nb"]
    assert cell_label("guidance_scale", 7.5) == "guidance_scale 7.5"
    assert cell_label("sampler", "ddim") == "sampler ddim"


def test_logged_warnings_are_notes_on_stderr_once(
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


def test_names_are_cut_by_bytes(room: Path, model_folder: str) -> None:
    rest = ["-m", model_folder, "--steps", "1", "--seed", str(2**64 - 1)]
    for _ in range(2):
        assert main(["\U00020000" * 80, *rest, "-o", "made/"]) == 0
    assert main(["\U00020000" * 80, "-m", model_folder, "--grid", "steps=1,2", "-o", "grids/"]) == 0
    for name in [*names(room / "made"), *names(room / "grids")]:
        assert len(os.fsencode(name)) <= 255
        assert name.startswith("\U00020000" * 50)
    long = "é" * 125 + ".png"
    assert main(["x", "y", "-m", model_folder, "--steps", "1", "--seed", "0", "-o", long]) == 0
    first = next(name for name in names(room) if name.endswith("-0.png"))
    (room / first).rename(room / long)
    assert main(["again", long, "-m", model_folder]) == 0
    assert main(["encode", long, "-m", model_folder]) == 0
    assert sum(name.endswith(("-again.png", ".latents")) for name in names(room)) == 2


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
def test_a_place_that_cannot_be_written_is_found_before_anything_is_loaded(
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
    save_picture(Picture(Image.new("RGB", (8, 8)), 0, Request(seed=0)), "drawn.png")
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


# An autoencoder in place of the model's own


@pytest.fixture
def vae(room: Path, tiny_model: Callable[..., StableDiffusion]) -> Path:
    """Another autoencoder, alone in a file."""
    from safetensors.torch import save_file

    save_vae = {f"first_stage_model.{n}": x for n, x in original_vae(tiny_model("sd1")).items()}
    save_file(save_vae, room / "vae.safetensors")
    return room / "vae.safetensors"


def original_vae(model: StableDiffusion) -> dict[str, torch.Tensor]:
    """The model's autoencoder by its original names, with its last layer the other way round."""
    from gradina.weights.key_tables import VAE, vae_indices
    from gradina.weights.remap import sources, write

    ours = model.vae.state_dict()
    tensors = write(ours, sources(ours, VAE, "original", vae_indices(model.vae.config)))
    return tensors | {"decoder.conv_out.weight": -tensors["decoder.conv_out.weight"]}


@pytest.mark.parametrize("options", [[], ["--low-memory"]])
def test_another_autoencoder_draws(room: Path, vae: Path, model_folder: str, options: list[str]) -> None:
    asked = ["a fox", "-m", model_folder, "--seed", "1", *options]
    assert main([*asked, "-o", "own.png"]) == 0
    assert main([*asked, "--vae", "vae.safetensors", "-o", "other.png"]) == 0
    assert main([*asked, "--vae", model_folder, "-o", "same.png"]) == 0
    assert (pixels("own.png") == pixels("same.png")).all()
    own, other = pixels("own.png").astype(int), pixels("other.png").astype(int)
    assert np.abs(own + other - 255).mean() < np.abs(own - other).mean()
    model = gradina.load(model_folder, vae=vae, dtype="fp32", low_memory=bool(options))
    (picture,) = gradina.generate(model, Request(prompt="a fox", seed=1))
    assert (np.array(picture.image) == pixels("other.png")).all()


def test_again_takes_the_autoencoder_of_the_picture(
    room: Path, vae: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a fox", "-m", model_folder, "--seed", "1", "--vae", "vae.safetensors", "-o", "a.png"]) == 0
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    assert main(["info", "a.png"]) == 0
    assert re.search(r"^vae +vae\.safetensors$", capsys.readouterr().out, re.M)
    vae.rename(room / "moved.safetensors")
    assert main(["again", "a.png", "-o", "c.png"]) == 2
    said = capsys.readouterr().err
    assert "vae.safetensors: there is no such autoencoder" in said
    assert "(so says a.png; name the model yourself with --model, or the autoencoder with --vae)" in said
    assert main(["again", "a.png", "-o", "c.png", "--vae", "moved.safetensors"]) == 0
    assert (pixels("a.png") == pixels("c.png")).all()
    assert capsys.readouterr().err == ""
    assert main(["again", "a.png", "-o", "d.png", "--vae", model_folder]) == 0
    assert re.search(r"note: drawn with the autoencoder vae\.safetensors \[\w{10}\], this is", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("0123456789", False),
        ("0123456789" + "a" * 54, False),
        ("0x0123456789" + "A" * 54, False),
        ("0123456780", True),
        ("0x" + "b" * 64, True),
        ("01234567", False),  # A1111's old hash, of other bytes
        ("blake3:" + "b" * 64, False),
        ("", False),
    ],
)
def test_hashes_of_other_kinds_say_nothing(said: str, other: bool) -> None:
    assert is_other(said, "0123456789") is other


def test_encode_and_decode_with_another_autoencoder(room: Path, photo: Path, vae: Path, model_folder: str) -> None:
    assert main(["encode", "photo.png", "-m", model_folder, "--vae", "vae.safetensors", "-o", "a.latents"]) == 0
    assert main(["decode", "a.latents", "-o", "same.png"]) == 0
    assert main(["decode", "a.latents", "-o", "own.png", "--vae", model_folder]) == 0
    own, other = pixels("own.png").astype(int), pixels("same.png").astype(int)
    assert np.abs(own + other - 255).mean() < np.abs(own - other).mean()


def test_options_that_change_nothing_are_noted(
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
