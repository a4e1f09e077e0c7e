"""MNIST: IDX files are read back as they were written, damaged ones are named, captions match their digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradina.errors import RecipeError
from gradina.training.data.dataset import generator
from gradina.training.data.mnist import mnist, read_idx

from ..conftest import write_idx


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 3, 2)])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
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
def test_damaged_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
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


def test_captions_match_all_pictures_of_their_class(digits: Path) -> None:
    data, rows = mnist(digits), torch.tensor([7, 3, 7, 13])
    texts, true = data.captions(rows, generator(1))
    assert all(text in data.wordings[k] for text, k in zip(texts, (7, 3, 7, 3), strict=True))
    assert true.tolist() == [[a == b for b in (7, 3, 7, 3)] for a in (7, 3, 7, 3)]
    many = {data.captions(rows, generator(i))[0][0] for i in range(200)}
    assert many == set(data.wordings[7])
