"""Shards: which members are pictures, which caption is whose, and what a damaged file is called."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from gradina.errors import DiskError, RecipeError
from gradina.training.data.image_folder import caption_summary, read_image_folder
from gradina.training.data.shards import read_shard

from .conftest import captions, write_picture

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(files: Files, links: dict[str, str] | None = None, kind: bytes = tarfile.LNKTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, to
            shard.addfile(info)
    return file.getvalue()


def shard(path: Path, files: Files, links: dict[str, str] | None = None, kind: bytes = tarfile.LNKTYPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(files, links, kind))
    return path


NFD = unicodedata.normalize("NFD", "été")


@pytest.mark.parametrize(
    ("picture", "files"),
    [
        ("a.png", {"a.txt": b"a seven"}),
        ("a.PNG", {"a.TXT": b"\xef\xbb\xbfa seven\r\n"}),
        ("a.png", {"a.caption": "a seven".encode("utf-16")}),
        ("a.png", {"a.png.txt": b"a seven"}),
        ("a.png", {"a.json": b'{"caption": "a seven", "width": 3}'}),
        ("a.png", {"a.txt": b"", "a.json": b'{"caption": "a seven"}'}),
        ("a.png", {"a.json": b'["x"]', "a.caption": b"a seven"}),
        ("./x/a.png", {"./x/a.txt": b"a seven", "./a.txt": b"another"}),
        (f"{NFD}.png", {"été.txt": b"a seven"}),
        ("000.input.png", {"000.caption.txt": b"a seven"}),
        ("000.input.png", {"000.txt": b"a seven"}),
        ("000.input.png", {"000.json": b'{"caption": "a seven"}'}),
        ("x/000.input.png", {"x/000.negative.txt": b"no", "x/000.prompt.txt": b"a seven", "000.txt": b"no"}),
        ("a.b.png", {"a.b.txt": b"a seven", "a.txt": b"no", "a.c.txt": b"no"}),
        ("../a.png", {"../a.txt": b"a seven"}),
        ("/a.png", {"/a.txt": b"a seven"}),
    ],
)
def test_sidecar_names_in_shards(tmp_path: Path, picture: str, files: Files) -> None:
    path = shard(tmp_path / "s.tar", {**files, picture: b"pixels"})
    assert captions(path) == {picture: "a seven"}
    assert read_image_folder(path)[0].data() == b"pixels"


def test_webdataset_layout(tmp_path: Path) -> None:
    data = write_picture(tmp_path / "x", "1.png").read_bytes()
    one = shard(tmp_path / "0.tar", {"a.png": data, "a.txt": b"boat a", "b.png": data, "b.json": b'{"text": "boat b"}'})
    shard(tmp_path / "1.tar", {"c.png": data, "c.txt": b"boat c"})
    (tmp_path / "x" / "1.png").unlink()
    assert captions(one) == {"a.png": "boat a", "b.png": "boat b"}
    assert captions(tmp_path) == {"a.png": "boat a", "b.png": "boat b", "c.png": "boat c"}
    assert read_image_folder(tmp_path)[0].data() == data
    shard(tmp_path / "2.tar", {"d.png": data})
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 4 pictures \(.*2.tar/d.png\)"):
        read_image_folder(tmp_path)
    (tmp_path / "2.tar").write_bytes(b"no")
    with pytest.raises(RecipeError, match=r"2.tar: is not a tar file"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("data", [b'["a seven"]', b"null", b'{"caption": ""}', b""])
def test_json_without_caption_leaves_it_missing(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 1 pictures \(.*s.tar/a.png\)"):
        read_image_folder(shard(tmp_path / "s.tar", {"a.png": b"", "a.json": data}))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.json", b"{", "s.tar/a.json: is not JSON"),
        ("a.json", b"[" * 100_000, r"s.tar/a.json: is not JSON \(it is nested too deep\)"),
        ("a.json", b'{"caption": 3}', "s.tar/a.json: caption is 3, expected a text"),
        ("a.txt", b"\x89PNG\0", "s.tar/a.txt is not text in UTF-8"),
    ],
)
def test_invalid_caption_names_its_member(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_image_folder(shard(tmp_path / "s.tar", {"a.png": b"", name: data}))


def test_links_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"x/a.png": b"pixels", "x/a.txt": b"a seven"}
    path = shard(tmp_path / "s.tar", files, {"b.png": "x/a.png", "b.txt": "x/a.txt"})
    assert captions(path) == {"x/a.png": "a seven", "b.png": "a seven"}
    assert read_image_folder(path)[1].data() == b"pixels"
    to = {"x/c.png": "a.png", "x/c.txt": "../x/a.txt", "d.png": "x/c.png", "d.txt": "x/c.txt"}
    assert captions(shard(path, files, to, tarfile.SYMTYPE)) == {
        "x/a.png": "a seven",
        "x/c.png": "a seven",
        "d.png": "a seven",
    }
    assert not caplog.messages
    shard(path, files, {"e.png": "/etc/passwd", "f.png": "g.png", "g.png": "f.png"}, tarfile.SYMTYPE)
    assert captions(path) == {"x/a.png": "a seven"}
    assert caplog.messages == [f"{path}/e.png and 2 more: is not a file, or a broken link, and is left out"]


def test_hidden_members_are_left_out(tmp_path: Path) -> None:
    hidden = ("._a.png", ".b.png", "__MACOSX/._a.png", "x/@eaDir/SYNOPHOTO_THUMB.png", ".cache/c.png")
    files = dict.fromkeys(hidden, b"")
    assert captions(shard(tmp_path / "s.tar", {**files, "./a.png": b"", "./a.txt": b"a"})) == {"./a.png": "a"}


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "s.tar": bytes, "S.TAR": bytes, "s.tar.gz": gzip.compress, "s.TGZ": gzip.compress, "s.tar.bz2": bz2.compress,
    "s.tar.xz": lzma.compress, "packed.tar": gzip.compress,
}  # fmt: skip


@pytest.mark.parametrize("name", PACKERS)
def test_compressed_shards(tmp_path: Path, cache: Path, name: str) -> None:
    path = tmp_path / "deep" / "folder" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(PACKERS[name](tar({"a.png": b"pixels", "a.txt": b"a seven"})))
    for source in (path, tmp_path / "deep"):
        (one,) = read_image_folder(source)
        assert (one.name, one.caption, one.data()) == (f"{path}/a.png", "a seven", b"pixels")
    kept = list(cache.rglob("*.tar"))
    assert len(kept) == (PACKERS[name] is not bytes)  # unpacked once
    assert caption_summary(read_image_folder(path)) == 'captions: from .txt files (1 of 1); a.png: "a seven"'


def test_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "s.tgz"
    path.write_bytes(gzip.compress(tar({"a.png": b"x" * 3000, "a.txt": b"a seven"})))
    assert captions(path) == {"a.png": "a seven"}
    (kept,) = cache.rglob("*.tar")
    kept.write_bytes(kept.read_bytes()[:700])
    assert captions(path) == {"a.png": "a seven"}
    assert read_image_folder(path)[0].data() == b"x" * 3000


def test_unwritable_cache_is_a_disk_error(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "s.tgz").write_bytes(gzip.compress(tar({"a.png": b"", "a.txt": b"a seven"})))
    cache.mkdir()
    (cache / "shards").write_bytes(b"")
    with pytest.raises(DiskError, match=r"shards: cannot be written"):
        read_image_folder(tmp_path)


WHOLE = tar({"a.png": b"x" * 3000, "a.txt": b"a seven"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no",
        WHOLE[:700],
        WHOLE[:4000],
        WHOLE[:3584] + b"x" * 999,
        gzip.compress(WHOLE, mtime=0)[:60],
        b"\x1f\x8b" + bytes(60),
        b"BZh",
        bytes(99),
    ],
)
def test_truncated_shard_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(RecipeError, match=r"s.tar: is not a tar file, or is cut off"):
        read_image_folder(tmp_path)


def test_missing_end_mark_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s.tar").write_bytes(WHOLE[: -8 * 512].rstrip(b"\0").ljust(3584 + 1024, b"\0"))
    assert captions(tmp_path) == {"a.png": "a seven"}
    assert caplog.messages == [
        f"{tmp_path / 's.tar'}: has no end-of-archive mark; if it was cut off, pictures are missing"
    ]


def test_shards_and_loose_pictures_are_both_read(tmp_path: Path) -> None:
    shard(tmp_path / "x" / "s.tar", {"a.png": b"", "a.txt": b"a seven"})
    (tmp_path / "a boat.png").write_bytes(b"")
    assert captions(tmp_path) == {"a boat.png": "a boat", "a.png": "a seven"}
    assert caption_summary(read_image_folder(tmp_path)) == (
        'captions: from names of files (1 of 2); a boat.png: "a boat"; from .txt files (1 of 2); a.png: "a seven"'
    )
    (tmp_path / "a boat.png").rename(tmp_path / "b.heic")
    assert captions(tmp_path) == {"a.png": "a seven"}


def test_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "s.tar", {f"{i}.{end}": str(i).encode() for i in range(50) for end in ("png", "txt")})
    found = read_image_folder(path)
    monkeypatch.setattr(tarfile, "open", None)
    assert [one.data() for one in found] == [str(i).encode() for i in range(50)]
    assert [one.caption for one in found] == [str(i) for i in range(50)]


def test_tables_in_shards_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "s.tar", {"x/a.png": b"", "x/a.txt": b"a seven", "x/metadata.jsonl": b"{}"})
    assert captions(tmp_path) == {"x/a.png": "a seven"}
    assert "s.tar/x/metadata.jsonl: is not read in a shard; unpack it, and give the folder" in caplog.text


def test_unread_members_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "s.tar", {"a.png": b"", "a.txt": b"a seven", "b.heic": b"", "c.tar": b"", "d.zip": b""})
    assert captions(tmp_path) == {"a.png": "a seven"}
    assert [message.partition("s.tar/")[2] for message in caplog.messages] == [
        "b.heic: is in a format that is not read, and left out; convert them to PNG or JPEG",
        "c.tar and 1 more: is not read in a shard; unpack it, and give the folder",
    ]


def test_duplicate_members_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(tmp_path / "s.tar", {"a.png": b"first", "a.txt": b"a seven"})
    with tarfile.open(path, "a") as more:
        info = tarfile.TarInfo("a.png")
        info.size = 4
        more.addfile(info, io.BytesIO(b"last"))
    (one,) = read_image_folder(path)
    assert (one.data(), one.caption) == (b"last", "a seven")
    assert caplog.messages == [f"{path}/a.png: is in the shard more than once, and the last is read, as by tar"]


def test_concatenated_tar_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(WHOLE + tar({"b.png": b"", "b.txt": b"a two"}))
    with pytest.raises(RecipeError, match=r"s.tar: has data after its end, as concatenated tar files do"):
        read_image_folder(tmp_path)


def test_captions_overridden_by_a_given_one_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(tmp_path / "s.tar", {"a.png": b"", "a.txt": b"a seven"})
    assert [one.caption for one in read_image_folder(path, "a sks dog")] == ["a sks dog"]
    assert caplog.messages == [
        f'{path}: has captions that are not read, since "a sks dog" is the caption of all pictures'
    ]


def test_one_caption_for_all_pictures(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"a.png": b"", "b.png": b""})
    assert [one.caption for one in read_shard(path, "a sks dog", lambda data, _: data.decode(), lambda *_: None)] == [
        "a sks dog"
    ] * 2
