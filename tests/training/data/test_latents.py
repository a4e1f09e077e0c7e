"""Latents: the encoder's, cached on disk, and drawn evenly or by their repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradina.errors import RecipeError
from gradina.images.tensor import to_pixels
from gradina.pipeline.model import StableDiffusion
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.latents import RANDOM_CROPS, Crop, LatentDataset, encode_pictures

from .conftest import write_picture

Tiny = Callable[..., StableDiffusion]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_latents_equal_the_encoders_and_are_cached(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model, folder = tiny_model("sd1"), tmp_path / "boats"
    write_picture(folder, "a red boat.png", (100, 80))
    write_picture(folder, "a blue boat.png", (64, 64), "blue")
    write_picture(folder, "a long boat.png", (256, 90), "green")
    data = encode_pictures(model, read_image_folder(folder), Crop(), 64 * 64)
    assert len(data) == 3
    assert sorted(data.captions) == [("a blue boat", "a red boat"), ("a long boat",)]
    square = data.captions.index(("a blue boat", "a red boat"))
    blue = to_pixels(Image.new("RGB", (64, 64), "blue"))[None]
    assert torch.allclose(data.mean[square][0, 0], model.encode(blue)[0], atol=1e-5)
    assert data.mean[1 - square].shape[-1] > data.mean[1 - square].shape[-2]
    files = list((cache / "latents").iterdir())
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    again = encode_pictures(model, read_image_folder(folder), Crop(), 64 * 64)
    assert all(torch.equal(a, b) for a, b in zip(data.mean, again.mean, strict=True))
    assert [file.stat().st_mtime_ns for file in files] == before
    write_picture(folder, "a red boat.png", (100, 80), "orange")
    assert not torch.equal(
        encode_pictures(model, read_image_folder(folder), Crop(), 64 * 64).mean[square], data.mean[square]
    )


def test_crops_and_mirror_images(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model = tiny_model("sd1")
    Image.linear_gradient("L").rotate(90).resize((130, 64)).save(write_picture(tmp_path / "boats", "a boat.png"))
    shown = read_image_folder(tmp_path / "boats")
    flipped = encode_pictures(model, shown, Crop(flip=True, buckets=False), 64 * 64)
    assert flipped.mean[0].shape[:2] == (1, 2)
    assert (flipped.mean[0][0, 0] - flipped.mean[0][0, 1]).abs().max() > 0.01
    chance = encode_pictures(model, shown, Crop(chance=True, buckets=False), 64 * 64)
    assert chance.mean[0].shape[:2] == (1, RANDOM_CROPS)
    assert chance.mean[0][0].std(0).max() > 0.01


def test_batches_share_a_bucket_and_are_drawn_evenly(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model, folder = tiny_model("sd1"), tmp_path / "boats"
    for i, size in enumerate([(64, 64)] * 3 + [(128, 64)]):
        write_picture(folder, f"boat {'abcd'[i]}.png", size)
    data = encode_pictures(model, read_image_folder(folder), Crop(), 64 * 64)
    seen: list[str] = []
    for k in range(300):
        latents, texts = data.batch(2, torch.Generator().manual_seed(k))
        assert latents.shape[0] == len(texts) == 2
        seen += texts
    share = {text: seen.count(text) / len(seen) for text in set(seen)}
    assert all(0.19 < x < 0.31 for x in share.values()), share
    one, same = (data.batch(2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one[0], same[0])


def test_small_and_damaged_pictures_are_named(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model, folder = tiny_model("sd1"), tmp_path / "boats"
    write_picture(folder, "a boat.png", (40, 64))
    with pytest.raises(RecipeError, match=r"1 of 1 pictures are too small, expected about 64x64 pixels \(.*40x64\)"):
        encode_pictures(model, read_image_folder(folder), Crop(), 64 * 64)
    assert len(encode_pictures(model, read_image_folder(folder), Crop(enlarge=True), 64 * 64)) == 1
    (folder / "b boat.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"b boat.png"):
        encode_pictures(model, read_image_folder(folder), Crop(enlarge=True), 64 * 64)


def test_first_frame_of_animations_is_encoded(
    tmp_path: Path, tiny_model: Tiny, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a boat.png")
    for name in ("b boat.gif", "c boat.webp", "d boat.tiff"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    model = tiny_model()
    (mean,) = encode_pictures(model, read_image_folder(tmp_path), Crop(), 64 * 64).mean
    assert (mean - mean[:1]).abs().max() < 0.1
    assert caplog.messages == [
        f"{tmp_path / 'b boat.gif'} and 2 more: is animated, or has several pages, of which the first is read"
    ]


def test_pictures_above_the_drawing_limit_are_encoded(tmp_path: Path, tiny_model: Tiny, cache: Path) -> None:
    write_picture(tmp_path, "a boat.png", (6000, 4000))
    assert len(encode_pictures(tiny_model(), read_image_folder(tmp_path), Crop(), 64 * 64)) == 1


def dataset(repeats: tuple[tuple[int, ...], ...]) -> LatentDataset:
    """Two buckets, of three pictures and of two, whose latents are their numbers."""
    mean = (torch.arange(3.0).view(3, 1, 1, 1, 1), torch.arange(3.0, 5.0).view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 2))
    std = tuple(torch.zeros_like(x) for x in mean)
    return LatentDataset(mean, std, (("0", "1", "2"), ("3", "4")), repeats)


def drawn(data: LatentDataset, count: int) -> Counter[str]:
    key = torch.Generator().manual_seed(0)
    seen: Counter[str] = Counter()
    for _ in range(count):
        latents, captions = data.batch(2, key)
        assert [str(int(x.flatten()[0])) for x in latents] == captions
        seen.update(captions)
    return seen


def test_pictures_are_drawn_by_their_repeats() -> None:
    repeats = ((1, 5, 2), (1, 1))
    seen = drawn(dataset(repeats), 2000)
    shares = [seen[str(i)] / seen.total() for i in range(5)]
    assert torch.allclose(torch.tensor(shares), torch.tensor([1, 5, 2, 1, 1]) / 10, atol=0.03)
    assert len(dataset(repeats)) == 5


def test_without_repeats_draws_are_those_of_older_versions() -> None:
    """The order of random draws is that of versions without repeats: a bucket, then rows, crops and noise."""
    key, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for repeats in ((), ((1, 1, 1), (1, 1))):
        for _ in range(20):
            latents, captions = dataset(repeats).batch(4, key)
            b = int(torch.randint(5, (1,), generator=same)) >= 3
            rows = torch.randint(2 if b else 3, (4,), generator=same)
            torch.randint(1, (4,), generator=same)
            torch.randn(4, *latents.shape[1:], generator=same)
            assert captions == [str(int(row) + 3 * b) for row in rows]
