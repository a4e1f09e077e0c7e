"""Embeddings of textual inversion: files of others are read, ours open in diffusers, and draw the same picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from gradina import Request, generate, load
from gradina.adapters.textual_inversion import Concept
from gradina.apps.cli.main import main
from gradina.errors import WeightsError
from gradina.images.metadata import read_picture
from gradina.pipeline.generate import steps
from gradina.pipeline.model import StableDiffusion
from gradina.weights.formats.textual_inversion import read_embedding, write_embedding

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a <teddy> boat", seed=7, steps=3, width=64, height=64, sampler="ddim", schedule="leading")


def vectors(count: int, width: int = 32) -> torch.Tensor:
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def grey(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.mark.parametrize(("count", "token"), [(1, "<teddy>"), (3, "<teddy>"), (3, "<Teddy>"), (2, "MyTeddy")])
def test_diffusers_draws_the_same_with_our_file(tiny_model: Tiny, tmp_path: Path, count: int, token: str) -> None:
    """With capitals, too: in the file the token is in lower case, by which diffusers finds all of its ids."""
    tiny_model("sd1").save(tmp_path / "model")
    path, prompt = tmp_path / "teddy.safetensors", f"a {token} boat"
    write_embedding(Concept(token, vectors(count)), path)
    model = load(tmp_path / "model")
    (mine,) = generate(model, replace(ASKED, prompt=prompt, concepts=(str(path),)))
    (without,) = generate(model, replace(ASKED, prompt=prompt))
    assert grey(mine.image, without.image) > 3
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipe.load_textual_inversion(path)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    theirs = pipe(prompt.lower(), num_inference_steps=3, guidance_scale=3.0, latents=noise).images[0]
    assert grey(mine.image, theirs) <= 1


def test_other_forms_of_files_are_read(tmp_path: Path) -> None:
    for count, tensors in (
        (1, {"<teddy>": vectors(1)[0]}),
        (2, {"<teddy>": vectors(2).half()}),
        (2, {"emb_params": vectors(2)}),
    ):
        save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / "bear.safetensors")
        read = read_embedding(tmp_path / "bear.safetensors")
        assert read.token == ("bear" if "emb_params" in tensors else "<teddy>")
        assert torch.allclose(read.vectors, vectors(count), atol=1e-2)
        assert read.vectors.dtype == torch.float32


PICKLES = {
    "a1111": {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(2)}, "name": "<teddy>", "step": 500},
    "parameter": {"string_to_param": {"*": torch.nn.Parameter(vectors(2))}, "name": "<teddy>"},
    "first": {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors(2))}), "name": "<teddy>"},
    "diffusers": {"<teddy>": vectors(2)},
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_converted(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "teddy.pt", tmp_path / "teddy.safetensors"
    torch.save(PICKLES[kind], source)
    assert main(["convert", str(source), str(target)]) == 0
    read = read_embedding(target)
    assert read.token == "<teddy>"
    assert torch.equal(read.vectors, vectors(2))
    assert main(["convert", str(source), str(tmp_path / "folder")]) == 2
    assert "an embedding is one file; end the name in .safetensors" in capsys.readouterr().err


def test_pickle_without_a_name_has_that_of_its_file(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": vectors(1)}, "name": None}, tmp_path / "bear.pt")
    main(["convert", str(tmp_path / "bear.pt"), str(tmp_path / "x.safetensors")])
    assert read_embedding(tmp_path / "x.safetensors").token == "bear"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": vectors(1), "clip_g": vectors(1)}, "is for SDXL, with vectors for two text towers"),
        (
            {"a": vectors(1), "b": vectors(1)},
            r"expected one embedding, as \(k, width\) vectors; it holds 2 embeddings \(a, b\)",
        ),
        ({"a": torch.zeros(1, 2, 3)}, r"vectors of floating point; a is float32 \(1, 2, 3\)"),
        ({"a": torch.zeros(0, 32)}, r"a is float32 \(0, 32\)"),
        ({"a": torch.zeros(1, 32, dtype=torch.int8)}, r"a is int8 \(1, 32\)"),
        ({"a.b": vectors(1), "c": vectors(1)}, r"it holds 2 tensors \(a.b, c\)"),
        ({}, r"it holds 0 tensors \(none\)"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: Any, message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        read_embedding(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["two.bin", "two.safetensors"])
def test_several_embeddings_are_not_converted(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = {"<a>": vectors(1)[0], "<b>": vectors(1)[0]}
    (torch.save if name.endswith(".bin") else save_file)(embeddings, tmp_path / name)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "x.safetensors")]) == 2
    assert (
        f"{name}: expected one embedding, as (k, width) vectors; it holds 2 embeddings (<a>, <b>)"
        in capsys.readouterr().err
    )


@given(
    names=st.lists(st.sampled_from(["emb_params", "clip_l", "clip_g", "<a>", "", " "]) | st.text(), unique=True),
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8, torch.complex64]),
    value=st.floats(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tensors_are_read_or_refused_by_name(
    tmp_path: Path, names: list[str], shape: list[int], dtype: torch.dtype, value: float, refused_by_name: Any
) -> None:
    path = tmp_path / "x.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values out of a dtype's range
        save_file({name: (torch.ones(shape) * value).to(dtype) for name in names}, path)
    with refused_by_name(path):
        read = read_embedding(path)
        assert len(read.token.split()) == 1
        assert read.vectors.dtype == torch.float32
        assert torch.isfinite(read.vectors).all()


def test_steps_reads_embeddings_too(tiny_model: Tiny, tmp_path: Path) -> None:
    model, path = tiny_model("sd1"), tmp_path / "teddy.safetensors"
    write_embedding(Concept("<teddy>", vectors(1)), path)
    asked = replace(ASKED, concepts=(str(path),))
    *_, last = steps(model, asked)
    (picture,) = generate(model, asked)
    assert grey(model.decode(last.denoised)[0], picture.image) <= 3  # ddim ends a little above noise level 0


def test_from_the_command_line(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("sd1").save("model")
    write_embedding(Concept("<teddy>", vectors(2)), "teddy.safetensors")
    asked = ["a <teddy> boat", "-m", "model", "--seed", "7", "--concept", "teddy.safetensors"]
    assert main([*asked, "-o", "a.png"]) == 0
    assert read_picture("a.png").request.concepts == ("teddy.safetensors",)
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert main([*asked, "--concept", "teddy.safetensors"]) == 2
    assert "teddy.safetensors: teaches the word <teddy>, as teddy.safetensors does" in capsys.readouterr().err


def test_token_can_be_given_with_the_file(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a grid and in `gradina again`; a file with = in its name stays a file."""
    monkeypatch.chdir(tmp_path)
    tiny_model("sd1").save("model")
    write_embedding(Concept("<teddy>", vectors(2)), "teddy.safetensors")
    write_embedding(Concept("<teddy>", vectors(2)), "a=b.safetensors")
    asked = ["-m", "model", "--seed", "7"]
    assert main(["a <teddy> boat", *asked, "--concept", "teddy.safetensors", "-o", "right.png"]) == 0
    assert "note: teddy.safetensors: is the embedding of <teddy>; WORD=teddy" in capsys.readouterr().err
    assert main(["a My-Bear boat", *asked, "--concept", "My-Bear=teddy.safetensors", "-o", "a.png"]) == 0
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert main(["a <teddy> boat", *asked, "--concept", "a=b.safetensors", "-o", "c.png"]) == 0
    assert main(["a my-bear boat", *asked, "--concept", "my-bear=a=b.safetensors", "-o", "d.png"]) == 0
    pictures = [Image.open(f"{name}.png").tobytes() for name in ("right", "a", "b", "c", "d")]
    assert len(set(pictures)) == 1
    assert read_picture("a.png").request.concepts == ("My-Bear=teddy.safetensors",)
    assert "My-Bear=teddy.safetensors" in str(read_picture("a.png").parameters)
    grid = "concepts=<x>=teddy.safetensors|<y>=teddy.safetensors+<z>=a=b.safetensors"
    assert main(["a boat", *asked, "--grid", grid, "-o", "grid.png"]) == 0
    for typed, message in (
        ("=teddy.safetensors", "=teddy.safetensors: expected WORD=FILE with a word without spaces, such as <teddy>="),
        ("my bear=teddy.safetensors", "expected WORD=FILE with a word without spaces, such as my-bear=teddy.safet"),
        ("bear=", "bear=: expected WORD=FILE"),
        ("bear=none.safetensors", "none.safetensors: there is no such file"),
        ("x/y=none.safetensors", "x/y=none.safetensors: there is no such file"),
        ("seven=teddy.safetensors", "teddy.safetensors: 'seven' is a token of this model already"),
    ):
        capsys.readouterr()
        assert main(["a boat", *asked, "--concept", typed]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.parametrize(
    ("stem", "name", "token", "warned"),
    [
        ("teddy", "emb_params", "teddy", False),
        ("Teddy", "emb_params", "teddy", False),
        ("Teddy", "TEDDY", "teddy", False),
        ("teddy", "<teddy>", "<teddy>", True),
        ("my style", "emb_params", "my-style", True),
        ("my style", "clip_l", "my-style", True),
        ("w", "My  Style", "my-style", True),
        ("w", "*", "w", False),
    ],
)
def test_warning_of_a_token_that_is_not_the_file_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stem: str, name: str, token: str, warned: bool
) -> None:
    save_file({name: vectors(1)}, tmp_path / f"{stem}.safetensors")
    assert read_embedding(tmp_path / f"{stem}.safetensors").token == token
    assert [f"is the embedding of {token};" in warning for warning in caplog.messages] == [True] * warned


@pytest.mark.parametrize(
    ("prompt", "negative", "warned"),
    [
        (("a red boat", "a <Teddy> boat"), "", False),
        ("a boat", "<teddy>", False),
        ("a teddy boat", "", True),
        ("a < teddy > boat", "", True),
    ],
)
def test_warning_of_a_token_that_no_prompt_contains(
    tiny_model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, prompt: Any, negative: str, warned: bool
) -> None:
    model, path = tiny_model("sd1"), tmp_path / "<teddy>.safetensors"
    write_embedding(Concept("<teddy>", vectors(2)), path)
    generate(model, replace(ASKED, prompt=prompt, negative_prompt=negative, concepts=(str(path),)))
    warning = f"concepts: {path} has no effect, as no prompt holds its word, <teddy>; write it in one"
    assert caplog.messages == [warning] * warned


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"<teddy>": torch.tensor([1.0, value])}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x.safetensors: <teddy> holds NaN or infinite values"):
        read_embedding(tmp_path / "x.safetensors")
