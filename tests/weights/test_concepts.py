"""Files of learnt words: theirs are read, ours are loaded by diffusers, and pictures are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from gradina import Request, generate, load
from gradina.adapters.textual import Concept
from gradina.apps.cli import main
from gradina.errors import WeightsError
from gradina.metadata import read_picture
from gradina.pipeline import StableDiffusion, steps
from gradina.weights.concepts import read_concept, write_concept

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a <teddy> boat", seed=7, steps=3, width=64, height=64, sampler="ddim", schedule="leading")


def vectors(count: int, width: int = 32) -> torch.Tensor:
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def grey(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.mark.parametrize("count", [1, 3])
def test_ours_draws_the_same_in_diffusers(tiny_model: Tiny, tmp_path: Path, count: int) -> None:
    tiny_model("sd1").save(tmp_path / "model")
    path = tmp_path / "teddy.safetensors"
    write_concept(Concept("<teddy>", vectors(count)), path)
    model = load(tmp_path / "model")
    (mine,) = generate(model, replace(ASKED, concepts=(str(path),)))
    (without,) = generate(model, ASKED)
    assert grey(mine.image, without.image) > 3
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipe.load_textual_inversion(path)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    theirs = pipe("a <teddy> boat", num_inference_steps=3, guidance_scale=3.0, latents=noise).images[0]
    assert grey(mine.image, theirs) <= 1


def test_the_forms_of_others_are_read(tmp_path: Path) -> None:
    for count, tensors in (
        (1, {"<teddy>": vectors(1)[0]}),
        (2, {"<teddy>": vectors(2).half()}),
        (2, {"emb_params": vectors(2)}),
    ):
        save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / "bear.safetensors")
        read = read_concept(tmp_path / "bear.safetensors")
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
    read = read_concept(target)
    assert read.token == "<teddy>"
    assert torch.equal(read.vectors, vectors(2))
    assert main(["convert", str(source), str(tmp_path / "folder")]) == 2
    assert "a learnt word is one file; end the name in .safetensors" in capsys.readouterr().err


def test_a_pickle_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": vectors(1)}, "name": None}, tmp_path / "bear.pt")
    main(["convert", str(tmp_path / "bear.pt"), str(tmp_path / "x.safetensors")])
    assert read_concept(tmp_path / "x.safetensors").token == "bear"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_l": vectors(1), "clip_g": vectors(1)}, "is for SDXL, with vectors for two text towers"),
        ({"a": vectors(1), "b": vectors(1)}, r"expected one word, as \(k, width\) vectors; it holds 2 names \(a, b\)"),
        ({"a": torch.zeros(1, 2, 3)}, "expected one word"),
    ],
)
def test_what_holds_no_word_is_named(tmp_path: Path, tensors: Any, words: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=words):
        read_concept(tmp_path / "x.safetensors")


def test_steps_know_the_word_too(tiny_model: Tiny, tmp_path: Path) -> None:
    model, path = tiny_model("sd1"), tmp_path / "teddy.safetensors"
    write_concept(Concept("<teddy>", vectors(1)), path)
    asked = replace(ASKED, concepts=(str(path),))
    *_, last = steps(model, asked)
    (picture,) = generate(model, asked)
    assert grey(model.decode(last.denoised)[0], picture.image) <= 3  # ddim ends a little above noise level 0


def test_from_the_command_line(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("sd1").save("model")
    write_concept(Concept("<teddy>", vectors(2)), "teddy.safetensors")
    asked = ["a <teddy> boat", "-m", "model", "--seed", "7", "--concept", "teddy.safetensors"]
    assert main([*asked, "-o", "a.png"]) == 0
    assert read_picture("a.png").request.concepts == ("teddy.safetensors",)
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert main([*asked, "--concept", "teddy.safetensors"]) == 2
    assert "'<teddy>' is a token of this model already" in capsys.readouterr().err
