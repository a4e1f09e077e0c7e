"""Folders of kohya's scripts: when they are meant, what they say, and how often their pictures are then drawn."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from gradina.errors import RecipeError
from gradina.training.data.captions import captions_told, read_folder
from gradina.training.data.image_folder import Owned

NOT_MEANT = "is not read as a number of repeats and words, as kohya's scripts read it"


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a seven" if name.endswith(".txt") else b"")
    return folder


def found(folder: Path, caption: str | None = None) -> dict[str, tuple[str, int]]:
    return {one.file.relative_to(folder).as_posix(): (one.caption, one.repeats) for one in read_folder(folder, caption)}


def test_folders_say_how_often_and_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(
        tmp_path,
        "10_sks dog/a boat.png",
        "10_sks dog/deep/IMG_1.png",
        "10_sks dog/b.png",
        "10_sks dog/b.txt",
        "1_dog/c.png",
    )
    assert found(tmp_path) == {
        "10_sks dog/a boat.png": ("sks dog", 10),
        "10_sks dog/b.png": ("a seven", 10),
        "10_sks dog/deep/IMG_1.png": ("sks dog", 10),
        "1_dog/c.png": ("dog", 1),
    }
    assert caplog.messages == [
        f"{tmp_path}: pictures are drawn as often as folders say, as by kohya's scripts "
        "(10_sks dog: 3 pictures x 10, 1_dog: 1 pictures x 1)"
    ]
    assert captions_told(read_folder(tmp_path)) == (
        'captions: from names of folders (3 of 4); a boat.png: "sks dog"; from .txt files (1 of 4); b.png: "a seven"'
    )


def test_shards_lie_in_folders_as_pictures_do(tmp_path: Path) -> None:
    make(tmp_path, "2_dog/a.png", "5_cat/b.png")
    with tarfile.open(tmp_path / "5_cat" / "s.tar", "w") as shard:
        shard.add(tmp_path / "5_cat" / "b.png", "c.png")
    (tmp_path / "5_cat" / "b.png").unlink()
    assert [(one.name, one.caption, one.repeats) for one in read_folder(tmp_path)] == [
        (f"{tmp_path}/2_dog/a.png", "dog", 2), (f"{tmp_path}/5_cat/s.tar/c.png", "cat", 5),
    ]  # fmt: skip


def test_words_are_as_they_are_written(tmp_path: Path) -> None:
    assert found(make(tmp_path, "5_my_red_boat/1.png")) == {"5_my_red_boat/1.png": ("my_red_boat", 5)}


def test_one_caption_for_all_leaves_the_numbers(tmp_path: Path) -> None:
    make(tmp_path, "3_dog/1.png", "1_cat/1.png")
    assert found(tmp_path, "a pet") == {"1_cat/1.png": ("a pet", 1), "3_dog/1.png": ("a pet", 3)}


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (("10_sks dog/a.png", "b.png"), "10_sks dog"),
        (("10_sks dog/a.png", "cats/b.png"), "10_sks dog"),
        (("img/10_sks dog/a.png", "img/1_dog/b.png"), "10_sks dog"),
        (("10_sks dog/a.png", "2023_holiday/b.png"), "10_sks dog"),
        (("2023_holiday/a.png",), ""),
        (("2023_holiday/a.png", "b.png"), ""),
        (("01_summer/a.png", "02_winter/b.png"), ""),
        (("20230101_boats/a.png",), ""),
        (("1001_boats/a.png",), ""),
        (("0_boats/a.png",), ""),
        (("10_/a.png",), ""),
        (("10 boats/a.png",), ""),
        (("boats_10/a.png",), ""),
    ],
)
def test_other_folders_are_not_kohyas(
    tmp_path: Path, names: tuple[str, ...], noted: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert found(make(tmp_path, *names)) == {name: (Path(name).stem, 1) for name in names}
    assert [message.partition(":")[0].removesuffix(" and 1 more") for message in caplog.messages] == [noted] * bool(
        noted
    )
    assert all(NOT_MEANT in message for message in caplog.messages)


def test_of_such_a_folder_itself_the_one_above_is_named(tmp_path: Path) -> None:
    make(tmp_path, "10_sks dog/IMG_1.png")
    with pytest.raises(RecipeError, match="10_sks dog says them where the folder above it is given"):
        read_folder(tmp_path / "10_sks dog")


def owned(repeats: tuple[tuple[int, ...], ...]) -> Owned:
    """Two buckets, of three pictures and of two, whose latents are their numbers."""
    mean = (torch.arange(3.0).view(3, 1, 1, 1, 1), torch.arange(3.0, 5.0).view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 2))
    std = tuple(torch.zeros_like(x) for x in mean)
    return Owned(mean, std, (("0", "1", "2"), ("3", "4")), repeats)


def drawn(data: Owned, count: int) -> Counter[str]:
    key = torch.Generator().manual_seed(0)
    seen: Counter[str] = Counter()
    for _ in range(count):
        latents, captions = data.batch(2, key)
        assert [str(int(x.flatten()[0])) for x in latents] == captions
        seen.update(captions)
    return seen


def test_pictures_are_drawn_as_often_as_they_are_repeated() -> None:
    repeats = ((1, 5, 2), (1, 1))
    seen = drawn(owned(repeats), 2000)
    shares = [seen[str(i)] / seen.total() for i in range(5)]
    assert torch.allclose(torch.tensor(shares), torch.tensor([1, 5, 2, 1, 1]) / 10, atol=0.03)
    assert len(owned(repeats)) == 5


def test_without_repeats_the_same_are_drawn_as_ever() -> None:
    """The numbers of the generator mean what they meant when there were none: a place among all, then rows."""
    key, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for repeats in ((), ((1, 1, 1), (1, 1))):
        for _ in range(20):
            latents, captions = owned(repeats).batch(4, key)
            b = int(torch.randint(5, (1,), generator=same)) >= 3
            rows = torch.randint(2 if b else 3, (4,), generator=same)
            torch.randint(1, (4,), generator=same)
            torch.randn(4, *latents.shape[1:], generator=same)
            assert captions == [str(int(row) + 3 * b) for row in rows]
