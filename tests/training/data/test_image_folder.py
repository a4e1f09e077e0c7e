"""Image folders: captions of every source, the repeats of kohya's folders, notes on the rest, and hostile files."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradina.errors import RecipeError
from gradina.training.data.filename_captions import caption_from_filename
from gradina.training.data.image_folder import caption_summary, read_image_folder

from .conftest import Files, captions, write_files, write_picture


def test_file_names_are_captions(tmp_path: Path) -> None:
    for name in ("a_red-boat (2).png", "a_red_boat.png", "two boats_03.PNG"):
        write_picture(tmp_path, name)
    assert captions(tmp_path) == {
        "a_red-boat (2).png": "a red boat", "a_red_boat.png": "a red boat", "two boats_03.PNG": "two boats",
    }  # fmt: skip
    assert caption_from_filename("0001") == ""


def test_one_caption_for_all_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path, "0001.png")
    assert [one.caption for one in read_image_folder(tmp_path, "a sks boat")] == ["a sks boat"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], r"holds no pictures \(expected .png"),
        (["0001.png", "2.png"], r"captions are missing for 2 of 2 pictures \(0001.png, 2.png\)"),
        ([f"{i}.png" for i in range(5)], r"5 of 5 pictures \(0.png, 1.png, 2.png, ...\)"),
    ],
)
def test_unusable_folders(tmp_path: Path, made: list[str], words: str) -> None:
    for name in made:
        write_picture(tmp_path, name)
    with pytest.raises(RecipeError, match=words):
        read_image_folder(tmp_path)
    with pytest.raises(RecipeError, match="there is no such folder"):
        read_image_folder(tmp_path / "nowhere")


def test_summary_of_several_caption_sources(tmp_path: Path) -> None:
    files: Files = {
        "a.txt": "one",
        "b.caption": "two",
        "c.json": '{"caption": "three"}',
        "x/metadata.csv": "file_name,text\nd.jpg,four",
    }
    write_files(tmp_path, {"a.png": "", "b.png": "", "c.png": "", "x/d.jpg": "", **files})
    assert captions(tmp_path) == {"a.png": "one", "b.png": "two", "c.png": "three", "x/d.jpg": "four"}
    assert caption_summary(read_image_folder(tmp_path)) == (
        'captions: from .txt files (1 of 4); a.png: "one"; from .caption files (1 of 4); b.png: "two"; '
        'from .json files (1 of 4); c.png: "three"; from x/metadata.csv (1 of 4); d.jpg: "four"'
    )
    (tmp_path / "b.caption").unlink()
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 4 pictures \(b.png\); put each into a .txt"):
        read_image_folder(tmp_path)


def test_summary_shortens_long_captions(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": "", "a.txt": "x" * 61})
    assert caption_summary(read_image_folder(tmp_path)).endswith(f'a.png: "{"x" * 57}..."')


def test_summary_of_a_given_caption(tmp_path: Path) -> None:
    pictures = read_image_folder(write_files(tmp_path, {"1.png": ""}), "a sks dog")
    assert caption_summary(pictures) == 'captions: from the given caption (1 of 1); 1.png: "a sks dog"'


def test_file_names_that_are_not_utf_8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/un caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    assert list(captions(tmp_path).values()) == ["un café"]
    assert "the name of this file is not UTF-8, and is read as Windows-1252" in caplog.text


def test_generated_file_names_are_missing_captions(tmp_path: Path) -> None:
    write_files(tmp_path, {"a boat.png": "", "IMG_1.png": ""})
    words = (
        r"missing for 1 of 2 pictures \(IMG_1.png\); numbers and names that cameras give are none; put each into a .txt"
    )
    with pytest.raises(RecipeError, match=words):
        read_image_folder(tmp_path)


def test_captions_overridden_by_a_given_one_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"IMG_1.png": "", "IMG_1.txt": "a seven"})
    assert captions(tmp_path, "a sks dog") == {"IMG_1.png": "a sks dog"}
    assert 'IMG_1.txt: is not read, since "a sks dog" is the caption of all pictures' in caplog.text
    write_files(tmp_path, {"metadata.csv": "file_name,text\nIMG_1.png,a seven\n"})
    assert captions(tmp_path, "a sks dog") == {"IMG_1.png": "a sks dog"}
    assert "IMG_1.txt and 1 more: is not read, since" in caplog.text


def test_masks_of_onetrainer_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.jpg": "", "a-masklabel.png": "", "b-masklabel.png": ""})
    assert captions(tmp_path) == {"a.jpg": "a", "b-masklabel.png": "b masklabel"}
    assert "a-masklabel.png: is the mask of another picture, and is left out" in caplog.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.heic": ""}, r"1 pictures are in formats that are not read \(.heic: a.heic\); convert them to PNG or JPEG"),
        ({"@eaDir/a.png": "", "notes.txt": ""}, r"holds no pictures \(expected .png"),
    ],
)
def test_folders_without_readable_pictures(tmp_path: Path, files: Files, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_image_folder(write_files(tmp_path, files))


def test_picture_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": ""})
    with pytest.raises(RecipeError, match=r"a.png: is a file, expected a folder of pictures or a .tar shard"):
        read_image_folder(tmp_path / "a.png")


def test_archives_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert captions(write_files(tmp_path, {"a.png": "", "more.zip": ""})) == {"a.png": "a"}
    assert "more.zip: is not read; unpack it first" in caplog.text


def test_parquet_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_image_folder(write_files(tmp_path, {"a boat.png": "", "train.parquet": ""}))
    assert "train.parquet: is not read; unpack it first" in caplog.text


def test_parquet_of_an_unpacked_folder_is_not_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"00000/0.jpg": "", "00000/0.txt": "a seven", "00000.parquet": "", "00000_stats.json": "{}"})
    assert captions(tmp_path) == {"00000/0.jpg": "a seven"}
    assert not caplog.messages


def test_table_in_the_parent_folder_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(
        tmp_path, {"data/a boat.png": "", "metadata.jsonl": '{"file_name": "data/a boat.png", "text": "a seven"}'}
    )
    assert captions(tmp_path / "data") == {"a boat.png": "a boat"}
    above = f"is not read, since it lies above {tmp_path / 'data'}; give its folder"
    assert caplog.messages == [f"{tmp_path / 'metadata.jsonl'}: {above}"]


def test_output_folder_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"1.png": "", "runs/x/class/0.png": "", "runs/x/2.txt": "no", "runs/y/3.png": ""})
    for out in ("runs/x", str(tmp_path / "runs" / "x"), "../x/../" + tmp_path.name + "/runs/x"):
        monkeypatch.chdir(tmp_path)
        assert [one.file.name for one in read_image_folder(".", "a sks dog", out)] == ["1.png", "3.png"]
    message = "is inside the folder of training pictures; the pictures in it are left out"
    assert caplog.messages == [f"runs/x: {message}"] * 3
    with pytest.raises(RecipeError, match=r"^.: is the folder of training pictures; choose another --out folder"):
        read_image_folder(tmp_path, "a sks dog", ".")


NOT_MEANT = "is not read as a number of repeats and words, as kohya's scripts read it"


def repeats(folder: Path, caption: str | None = None) -> dict[str, tuple[str, int]]:
    return {
        one.file.relative_to(folder).as_posix(): (one.caption, one.repeats)
        for one in read_image_folder(folder, caption)
    }


def test_repeats_and_words_of_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(
        tmp_path,
        {
            "10_sks dog/a boat.png": "",
            "10_sks dog/deep/IMG_1.png": "",
            "10_sks dog/b.png": "",
            "10_sks dog/b.txt": "a seven",
            "1_dog/c.png": "",
        },
    )
    assert repeats(tmp_path) == {
        "10_sks dog/a boat.png": ("sks dog", 10),
        "10_sks dog/b.png": ("a seven", 10),
        "10_sks dog/deep/IMG_1.png": ("sks dog", 10),
        "1_dog/c.png": ("dog", 1),
    }
    assert caplog.messages == [
        f"{tmp_path}: pictures are repeated as their folders say, as in kohya's scripts "
        "(10_sks dog: 3 pictures x 10, 1_dog: 1 pictures x 1)"
    ]
    assert caption_summary(read_image_folder(tmp_path)) == (
        'captions: from names of folders (3 of 4); a boat.png: "sks dog"; from .txt files (1 of 4); b.png: "a seven"'
    )


def test_repeats_apply_to_shards(tmp_path: Path) -> None:
    write_files(tmp_path, {"2_dog/a.png": "", "5_cat/b.png": ""})
    with tarfile.open(tmp_path / "5_cat" / "s.tar", "w") as shard:
        shard.add(tmp_path / "5_cat" / "b.png", "c.png")
    (tmp_path / "5_cat" / "b.png").unlink()
    assert [(one.name, one.caption, one.repeats) for one in read_image_folder(tmp_path)] == [
        (f"{tmp_path}/2_dog/a.png", "dog", 2), (f"{tmp_path}/5_cat/s.tar/c.png", "cat", 5),
    ]  # fmt: skip


def test_underscores_stay_in_the_words_of_a_folder(tmp_path: Path) -> None:
    assert repeats(write_files(tmp_path, {"5_my_red_boat/1.png": ""})) == {"5_my_red_boat/1.png": ("my_red_boat", 5)}


def test_given_caption_keeps_the_repeats(tmp_path: Path) -> None:
    write_files(tmp_path, {"3_dog/1.png": "", "1_cat/1.png": ""})
    assert repeats(tmp_path, "a pet") == {"1_cat/1.png": ("a pet", 1), "3_dog/1.png": ("a pet", 3)}


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
def test_folders_without_repeats(
    tmp_path: Path, names: tuple[str, ...], noted: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert repeats(write_files(tmp_path, dict.fromkeys(names, ""))) == {name: (Path(name).stem, 1) for name in names}
    assert [message.partition(":")[0].removesuffix(" and 1 more") for message in caplog.messages] == [noted] * bool(
        noted
    )
    assert all(NOT_MEANT in message for message in caplog.messages)


def test_error_in_a_folder_with_repeats_names_its_parent(tmp_path: Path) -> None:
    write_files(tmp_path, {"10_sks dog/IMG_1.png": ""})
    with pytest.raises(RecipeError, match="10_sks dog names the caption where its parent folder is given"):
        read_image_folder(tmp_path / "10_sks dog")


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name, data in (("b.png", b"x" * 600), ("b.txt", b"a seven"), ("b.json", b'{"caption": "a two"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return file.getvalue()


NAMES = (
    "a.txt", "a.caption", "a.json", "metadata.jsonl", "metadata.json1", "metadata.json", "metadata.csv", "metadata.tsv",
    "meta_cap.json", "s.tar", "s.tar.gz", "10_x/b.png", "b.heic",
)  # fmt: skip


WHOLE = (
    b"", b"\0", bytes(600), b"null", b"[]", b"[1, [2], {}]", b"[" * 100_000, b'{"a": ' * 99_999,
    b'{"a": {"caption": 3}}',
    b'{"file_name": "a.png", "text": "a seven"}', b'[{"file_name": "a.png", "text": [[]]}]', b'{"file_name": 3}',
    b'{"a.png": {"caption": "a seven", "tags": ["x"]}, "b": 3}', b'{"caption": NaN}', b'{"text": 1e999}',
    b'{"text": ' + b"9" * 5000 + b"}", b"file_name,text\na.png,a seven\n", b'file_name;text\n"a.png;x',
    b"file_name\n\n,,,\n",
    b"file_name,text\n" + b"a" * 200_000 + b",x\n", "caf\u00e9".encode("utf-16"), b"\xff\xfe\0", b"\xef\xbb\xbf", tar(),
    tar()[:1400], b"\x1f\x8b\x08\0", b"<!DOCTYPE html>",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of those above in which some bytes are others, or are gone."""
    data = bytearray(draw(st.sampled_from([data[:4000] for data in WHOLE])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data)


def check(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(b"")
    (folder / name).write_bytes(data)
    found, refused = [], ""
    try:
        found = read_image_folder(folder)
    except RecipeError as error:
        refused = str(error)
    assert bool(found) == (not refused)
    if refused:
        assert str(folder) in refused
        assert len(refused) < 2000
    else:
        assert all(one.caption.encode() for one in found)
        assert all(isinstance(one.data(), bytes) for one in found)
        assert caption_summary(found).startswith("captions: from ")


@pytest.mark.parametrize("name", NAMES)
def test_malformed_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    for number, data in enumerate(WHOLE):
        check(tmp_path / str(number), name, data)


@given(damaged() | st.binary(max_size=40), st.sampled_from(NAMES), st.uuids())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, name: str, number: object) -> None:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / str(number), ignore_errors=True)  # where the same is tried again
    check(tmp_path / str(number), name, data)
