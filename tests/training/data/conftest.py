"""Files of training data, as others lay them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gradina.training.data.dataset import Split
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import IconScenes
from gradina.training.pretrain.recipes import Recipe

Files = dict[str, bytes | str]


def write_files(folder: Path, files: Files) -> Path:
    """A folder with files of these bytes; pictures are not opened by those who read captions, and may be anything."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write_picture(folder: Path, name: str, size: tuple[int, int] = (64, 64), colour: str = "red") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)
    return folder / name


def captions(source: Path, caption: str | None = None) -> dict[str, str]:
    """The captions that are found, by members of shards, or by paths in the folder."""
    pictures = read_image_folder(source, caption)
    return {one.member or one.file.relative_to(source).as_posix(): one.caption for one in pictures}


@pytest.fixture
def icon_scenes(icon_recipe: Callable[..., Recipe]) -> Callable[..., IconScenes]:
    """A data set of such squares."""

    def make(split: Split = "train", **fields: object) -> IconScenes:
        loaded = load_dataset(icon_recipe(**fields), split)
        assert isinstance(loaded, IconScenes)
        return loaded

    return make
