"""Pictures of one's own: where captions are found, what is refused, how pictures are cropped, and what is kept."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradina.errors import RecipeError
from gradina.pipeline.model import StableDiffusion, to_pixels
from gradina.training.data.image_folder import (
    CROPS,
    Crop,
    covering,
    cropped,
    encoded,
    nearest,
    read_folder,
    shapes,
    spoken,
)

Tiny = Callable[..., StableDiffusion]


def picture(folder: Path, name: str, size: tuple[int, int] = (64, 64), colour: str = "red") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)
    return folder / name


def captions(source: Path) -> dict[str, str]:
    return {one.member or one.file.name: one.caption for one in read_folder(source)}


def test_names_of_files_are_captions(tmp_path: Path) -> None:
    for name in ("a_red-boat (2).png", "a_red_boat.png", "two boats_03.PNG"):
        picture(tmp_path, name)
    assert captions(tmp_path) == {
        "a_red-boat (2).png": "a red boat", "a_red_boat.png": "a red boat", "two boats_03.PNG": "two boats",
    }  # fmt: skip
    assert spoken("0001") == ""


def test_a_text_beside_each_picture(tmp_path: Path) -> None:
    for name in ("1.png", "2.jpg"):
        picture(tmp_path / "deep", name).with_suffix(".txt").write_text(f" boat {name[0]}\n")
    assert captions(tmp_path) == {"1.png": "boat 1", "2.jpg": "boat 2"}
    (tmp_path / "deep" / "2.txt").unlink()
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 2 pictures \(deep/2.jpg\)"):
        read_folder(tmp_path)


def test_tables_of_metadata(tmp_path: Path) -> None:
    picture(tmp_path, "1.png")
    picture(tmp_path / "more", "2.png")
    rows = [{"file_name": "1.png", "text": "one"}, {"file_name": "more/2.png", "caption": "two"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions(tmp_path) == {"1.png": "one", "2.png": "two"}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\n1.png,"one, and more"\nmore/2.png,two\n')
    assert captions(tmp_path) == {"1.png": "one, and more", "2.png": "two"}
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,one\nmore/3.png,three\n")
    with pytest.raises(RecipeError, match=r"1 pictures with a caption are not there \(.*3.png\)"):
        read_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,text\n1.png,one\n")
    with pytest.raises(
        RecipeError, match=r"metadata.csv: row 1 has no file_name; expected file_name and text in the first"
    ):
        read_folder(tmp_path)


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_in_the_layout_of_webdataset(tmp_path: Path) -> None:
    data = picture(tmp_path / "x", "1.png").read_bytes()
    one = shard(tmp_path / "0.tar", {"a.png": data, "a.txt": b"boat a", "b.png": data, "b.json": b'{"text": "boat b"}'})
    shard(tmp_path / "1.tar", {"c.png": data, "c.txt": b"boat c"})
    (tmp_path / "x" / "1.png").unlink()
    assert captions(one) == {"a.png": "boat a", "b.png": "boat b"}
    assert captions(tmp_path) == {"a.png": "boat a", "b.png": "boat b", "c.png": "boat c"}
    assert read_folder(tmp_path)[0].data() == data
    shard(tmp_path / "2.tar", {"d.png": data})
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 4 pictures \(.*2.tar/d.png\)"):
        read_folder(tmp_path)
    (tmp_path / "2.tar").write_bytes(b"no")
    with pytest.raises(RecipeError, match=r"2.tar: is no tar file"):
        read_folder(tmp_path)


def test_one_caption_for_all(tmp_path: Path) -> None:
    picture(tmp_path, "0001.png")
    assert [one.caption for one in read_folder(tmp_path, "a sks boat")] == ["a sks boat"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], r"holds no pictures \(expected .png"),
        (["0001.png", "2.png"], r"captions are missing for 2 of 2 pictures \(0001.png, 2.png\)"),
        ([f"{i}.png" for i in range(5)], r"5 of 5 pictures \(0.png, 1.png, 2.png, ...\)"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, made: list[str], words: str) -> None:
    for name in made:
        picture(tmp_path, name)
    with pytest.raises(RecipeError, match=words):
        read_folder(tmp_path)
    with pytest.raises(RecipeError, match="there is no such folder"):
        read_folder(tmp_path / "nowhere")


def test_buckets_have_about_as_many_pixels_and_fit() -> None:
    found = shapes(512 * 512, 64)
    assert found[0] == (512, 512)
    assert (384, 640) in found
    assert (640, 384) in found
    assert all(w % 64 == h % 64 == 0 and w * h <= 512 * 512 and max(w / h, h / w) <= 2 for w, h in found)
    assert shapes(128 * 128, 32, several=False) == [(128, 128)]
    assert nearest((1000, 1000), found) == (512, 512)
    assert nearest((600, 1000), found) == (384, 640)
    assert nearest((5000, 100), found)[0] > 512


def test_a_crop_covers_its_shape_from_side_to_side() -> None:
    image = Image.new("RGB", (200, 100))
    image.paste("white", (100, 0, 200, 100))
    left, middle, right = (cropped(image, (50, 50), across) for across in (0.0, 0.5, 1.0))
    assert left.size == (50, 50)
    dark, both, light = (one.getextrema()[0] for one in (left, middle, right))
    assert dark[1] < 20
    assert light[0] > 235
    assert both[0] < 20 < 235 < both[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_latents_are_the_encoders_and_kept(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model, folder = tiny_model("sd1"), tmp_path / "boats"
    picture(folder, "a red boat.png", (100, 80))
    picture(folder, "a blue boat.png", (64, 64), "blue")
    picture(folder, "a long boat.png", (256, 90), "green")
    owned = encoded(model, read_folder(folder), Crop(), 64 * 64)
    assert len(owned) == 3
    assert sorted(owned.captions) == [("a blue boat", "a red boat"), ("a long boat",)]
    square = owned.captions.index(("a blue boat", "a red boat"))
    blue = to_pixels(Image.new("RGB", (64, 64), "blue"))[None]
    assert torch.allclose(owned.mean[square][0, 0], model.encode(blue)[0], atol=1e-5)
    assert owned.mean[1 - square].shape[-1] > owned.mean[1 - square].shape[-2]
    files = list((cache / "latents").iterdir())
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    again = encoded(model, read_folder(folder), Crop(), 64 * 64)
    assert all(torch.equal(a, b) for a, b in zip(owned.mean, again.mean, strict=True))
    assert [file.stat().st_mtime_ns for file in files] == before
    picture(folder, "a red boat.png", (100, 80), "orange")
    assert not torch.equal(encoded(model, read_folder(folder), Crop(), 64 * 64).mean[square], owned.mean[square])


def test_crops_and_mirror_images(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model = tiny_model("sd1")
    Image.linear_gradient("L").rotate(90).resize((130, 64)).save(picture(tmp_path / "boats", "a boat.png"))
    shown = read_folder(tmp_path / "boats")
    flipped = encoded(model, shown, Crop(flip=True, buckets=False), 64 * 64)
    assert flipped.mean[0].shape[:2] == (1, 2)
    assert (flipped.mean[0][0, 0] - flipped.mean[0][0, 1]).abs().max() > 0.01
    chance = encoded(model, shown, Crop(chance=True, buckets=False), 64 * 64)
    assert chance.mean[0].shape[:2] == (1, CROPS)
    assert chance.mean[0][0].std(0).max() > 0.01


def test_batches_are_of_one_shape_and_drawn_evenly(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model, folder = tiny_model("sd1"), tmp_path / "boats"
    for i, size in enumerate([(64, 64)] * 3 + [(128, 64)]):
        picture(folder, f"boat {'abcd'[i]}.png", size)
    owned = encoded(model, read_folder(folder), Crop(), 64 * 64)
    seen: list[str] = []
    for k in range(300):
        latents, texts = owned.batch(2, torch.Generator().manual_seed(k))
        assert latents.shape[0] == len(texts) == 2
        seen += texts
    share = {text: seen.count(text) / len(seen) for text in set(seen)}
    assert all(0.19 < x < 0.31 for x in share.values()), share
    one, same = (owned.batch(2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one[0], same[0])


def test_small_and_broken_pictures_are_named(tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    model, folder = tiny_model("sd1"), tmp_path / "boats"
    picture(folder, "a boat.png", (40, 64))
    with pytest.raises(RecipeError, match=r"1 of 1 pictures are too small, expected about 64x64 pixels \(.*40x64\)"):
        encoded(model, read_folder(folder), Crop(), 64 * 64)
    assert len(encoded(model, read_folder(folder), Crop(enlarge=True), 64 * 64)) == 1
    (folder / "b boat.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"b boat.png"):
        encoded(model, read_folder(folder), Crop(enlarge=True), 64 * 64)


def test_what_moves_is_told_and_its_first_picture_is_learnt(
    tmp_path: Path, tiny_model: Tiny, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a boat.png")
    for name in ("b boat.gif", "c boat.webp", "d boat.tiff"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    model = tiny_model()
    (mean,) = encoded(model, read_folder(tmp_path), Crop(), 64 * 64).mean
    assert (mean - mean[:1]).abs().max() < 0.1
    assert caplog.messages == [
        f"{tmp_path / 'b boat.gif'} and 2 more: is animated, or has several pages, of which the first is read"
    ]


def test_pictures_larger_than_what_is_drawn_are_learnt(tmp_path: Path, tiny_model: Tiny, cache: Path) -> None:
    picture(tmp_path, "a boat.png", (6000, 4000))
    assert len(encoded(tiny_model(), read_folder(tmp_path), Crop(), 64 * 64)) == 1


def test_what_covers_a_shape_stays_as_it_is() -> None:
    image = Image.effect_noise((301, 173), 90)
    whole = covering(image, (64, 48))
    assert whole.size == (84, 48)
    assert covering(whole, (64, 48)).tobytes() == whole.tobytes()
    assert cropped(image, (64, 48), 0.3, 0.9).tobytes() == cropped(whole, (64, 48), 0.3, 0.9).tobytes()
