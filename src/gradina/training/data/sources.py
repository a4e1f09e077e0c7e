"""The data sets that recipes can name, as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradina.errors import RecipeError
from gradina.training.data.batches import Examples, Split, mnist, npm_package
from gradina.training.data.synthetic import composed
from gradina.training.pretrain.recipes import Recipe

SOURCES: dict[str, Callable[[Recipe, list[Path], Split], Examples]] = {
    "mnist": lambda recipe, folders, split: mnist(folders[0], split),
    "icons": composed,
}


def load_data(recipe: Recipe, split: Split = "train") -> Examples:
    """A part of a recipe's data, from folders here or from npm packages, which are fetched once.

    Raises RecipeError, and MissingExtra where npm is missing.
    """
    data = recipe.data
    if data.source not in SOURCES:
        raise RecipeError(f"data.source: there is no {data.source!r} (choices: {', '.join(SOURCES)})")
    if not data.folders and not data.packages:
        raise RecipeError("data: expected packages on npm, or folders")
    folders = [Path(folder) for folder in data.folders] or [npm_package(name) for name in data.packages]
    return SOURCES[data.source](recipe, folders, split)
