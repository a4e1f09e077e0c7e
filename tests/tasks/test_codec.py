"""The codec: pictures of any size become files of latents and come back; other files are refused in one line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gradina.errors import DiskError, PictureError
from gradina.images.tensor import to_pixels
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.codec import FORMAT, Latents, decode, encode, measure, open_latents
from gradina.tasks.metrics import psnr

Tiny = Callable[..., StableDiffusion]


def photo(width: int, height: int) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], 2).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (8, 8), (1, 1), (7, 65), (33, 20)])
def test_pictures_of_any_size_round_trip(width: int, height: int, tiny_model: Tiny, tmp_path: Path) -> None:
    model, picture = tiny_model(), photo(width, height)
    latents = encode(model, picture)
    assert latents.z.shape == (4, -(-height // 8), -(-width // 8))
    assert (latents.width, latents.height, latents.model) == (width, height, "tiny")
    assert decode(model, latents).size == (width, height)
    latents.save(tmp_path / "photo.latents")
    read = open_latents(tmp_path / "photo.latents")
    assert torch.equal(read.z, latents.z.half())
    assert (read.width, read.height, read.model, read.hash) == (width, height, "tiny", "")
    one, two = (to_pixels(decode(model, some)) for some in (read, latents))
    assert (one - two).abs().max() < 0.1


def test_sides_are_padded_by_replication(tiny_model: Tiny) -> None:
    picture = photo(13, 21)
    filled = Image.fromarray(np.pad(np.asarray(picture), ((0, 3), (0, 3), (0, 0)), mode="edge"))
    assert torch.equal(encode(tiny_model(), picture).z, encode(tiny_model(), filled).z)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (8, 24), (128, 32)])
def test_latents_have_48_times_fewer_values(width: int, height: int, tiny_model: Tiny) -> None:
    model, picture = tiny_model(), photo(width, height)
    latents = encode(model, picture)
    loss = measure(model, picture, latents)
    assert loss.ratio == 48
    back = decode(model, Latents(latents.z.half(), width, height))
    one, two = (torch.from_numpy(np.array(image)) for image in (picture, back))
    assert loss.psnr == pytest.approx(psnr(one, two, peak=255), abs=1e-4)


def test_the_psnr_is_that_of_the_decoded_file(tiny_model: Tiny, tmp_path: Path) -> None:
    model, picture = tiny_model(), photo(50, 30)
    encode(model, picture).save(tmp_path / "photo.latents")
    read = open_latents(tmp_path / "photo.latents")
    assert measure(model, picture, read) == measure(model, picture, encode(model, picture))
    assert (tmp_path / "photo.latents").stat().st_size < 4 * 7 * 4 * 2 + 400


def test_truncated_files_are_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "photo.latents"
    encode(tiny_model(), photo(16, 16)).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(PictureError, match=r"photo\.latents: ") as caught:
            open_latents(path)
        assert "\n" not in str(caught.value)


def _saved(path: Path, tensors: dict[str, torch.Tensor], **about: str) -> Path:
    save_file(tensors, path, {"format": FORMAT, "width": "16", "height": "16"} | about)
    return path


Z = torch.zeros(4, 2, 2)


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"latents": Z}, {"format": "pt"}),
        ({"weights": Z}, {}),
        ({"latents": Z[0]}, {}),
        ({"latents": Z / 0}, {}),
        ({"latents": Z}, {"width": "sixteen"}),
        ({"latents": Z}, {"width": "0"}),
        ({"latents": Z}, {"height": "-16"}),
        ({"latents": Z.long()}, {}),
        ({"latents": Z.bool()}, {}),
    ],
)
def test_files_without_the_format_are_refused(
    tensors: dict[str, torch.Tensor], about: dict[str, str], tmp_path: Path
) -> None:
    path = _saved(tmp_path / "some.latents", tensors, **about)
    with pytest.raises(PictureError, match=r"some\.latents: .* `gradina encode`"):
        open_latents(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n" + bytes(100), struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 4) + b"\xff{}}"],
)
def test_files_of_other_kinds_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.latents").write_bytes(data)
    with pytest.raises(PictureError, match=r"some\.latents: not a file of latents"):
        open_latents(tmp_path / "some.latents")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.latents", tmp_path):
        with pytest.raises(PictureError, match="there is no such file"):
            open_latents(path)


@pytest.mark.parametrize(("shape", "width"), [((4, 2, 2), 24), ((8, 2, 2), 16), ((4, 3, 2), 16), ((4, 2, 2), 10**9)])
def test_latents_of_another_shape_are_refused(
    shape: tuple[int, ...], width: int, tiny_model: Tiny, tmp_path: Path
) -> None:
    read = open_latents(_saved(tmp_path / "some.latents", {"latents": torch.zeros(shape)}, width=str(width)))
    with pytest.raises(PictureError, match=r"latents: got \dx\dx\d, expected 4x2x\d+ for tiny"):
        decode(tiny_model(), read)


def test_an_unwritable_path_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    latents = encode(tiny_model(), photo(8, 8))
    with pytest.raises(DiskError):
        latents.save(tmp_path / "nowhere" / "photo.latents")
    assert list(tmp_path.iterdir()) == []
