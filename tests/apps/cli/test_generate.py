"""The verbs generate and again: pictures, grids, films and strips, and the model that again loads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gradina
from gradina import Request
from gradina.apps.cli.generate import hash_differs
from gradina.apps.cli.main import main


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


def test_a_prompt_is_short_for_generate(room: Path, model_folder: str) -> None:
    rest = ["a seven", "-m", model_folder, "--seed", "3"]
    assert main([*rest, "-o", "a.png"]) == main(["generate", *rest, "-o", "b.png"]) == 0
    assert main(["-o", "c.png", *rest]) == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") == pixels("c.png")).all()


def test_several_pictures_are_named_by_their_seeds(room: Path, model_folder: str) -> None:
    assert main(["one", "two", "-k", "2", "--seed", "5", "-m", model_folder, "-o", "x.png"]) == 0
    assert names(room) == [f"x-{seed}.png" for seed in (5, 6, 7, 8)]
    main(["two", "--seed", "7", "-m", model_folder, "-o", "alone.png"])
    assert np.abs(pixels("x-7.png").astype(int) - pixels("alone.png")).max() <= 1


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


def test_again_computes_in_the_same_dtype(
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


def test_again_with_an_init_image(room: Path, photo: Path, model_folder: str) -> None:
    main(["x", "-m", model_folder, "-i", "photo.png", "--strength", "0.5", "--seed", "1", "-o", "a.png"])
    assert main(["again", "a.png", "-m", model_folder]) == 0
    assert (pixels("a.png") == pixels("a-again.png")).all()


def test_again_finds_the_model_by_its_folder(room: Path, model_folder: str) -> None:
    main(["x", "-m", model_folder, "--seed", "1", "-o", "a.png"])
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert (pixels("a.png") == pixels("b.png")).all()


def test_again_reads_a_picture_of_a1111_and_notes_what_is_not_supported(
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


def test_prompts_can_be_an_axis_of_a_grid(room: Path, model_folder: str) -> None:
    assert main(["x", "-m", model_folder, "--steps", "1", "--grid", "prompt=a cat, red|a dog", "-o", "g.png"]) == 0
    assert pixels("g.png").shape[1] > 2 * 128


def test_film_and_strip(room: Path, model_folder: str) -> None:
    rest = ["x", "-m", model_folder, "--steps", "6", "--seed", "1", "-o", "x.png"]
    assert main([*rest, "--film", "f.gif", "--strip", "s.png"]) == 0
    with Image.open("f.gif") as film:
        assert film.n_frames == 7
        film.seek(6)
        last = np.array(film.convert("RGB").resize((64, 64), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(last - pixels("x.png")).mean() < 16, "a GIF has 256 colours"
    assert pixels("s.png").shape[1] > 7 * 128


def test_a_tiny_decoder_decodes_all_frames_of_a_film_but_the_last(room: Path, model_folder: str) -> None:
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


@pytest.mark.parametrize("output", ["g.jpg", "g.jpeg", "g.webp", "g.png", "sheets/", "."])
def test_a_grid_is_written_in_the_format_of_its_suffix(room: Path, model_folder: str, output: str) -> None:
    rest = ["a fox", "-m", model_folder, "--steps", "1", "--seed", "1", "--grid", "steps=1,2"]
    assert main([*rest, "-o", output]) == 0
    written = {"sheets/": "sheets/a-fox-grid.png", ".": "a-fox-grid.png"}.get(output, output)
    with Image.open(written) as sheet:
        assert sheet.format == {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(Path(written).suffix, "PNG")
        assert sheet.width > 2 * 128


def test_a_huge_picture_is_refused(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (5000, 4000)).save("huge.png")
    assert main(["x", "-i", "huge.png"]) == 2
    assert "5000 x 4000 pixels, 20.0 megapixels (at most 16.8)" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--low-memory"]])
def test_another_autoencoder(room: Path, vae: Path, model_folder: str, options: list[str]) -> None:
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


def test_again_loads_the_autoencoder_of_the_picture(
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
def test_hashes_of_other_kinds_do_not_differ(said: str, other: bool) -> None:
    assert hash_differs(said, "0123456789") is other
