"""Files and folders are written atomically, checked before, and hashed once."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from gradina import files
from gradina.errors import DiskError, GradinaError, WeightsError
from gradina.files import (
    atomic_folder,
    atomic_path,
    atomic_write,
    cache_folder,
    check_model_folder,
    check_writable,
    check_writable_folder,
    file_sha256,
    read_json,
    replaceable,
    stamp,
    with_ending,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with atomic_write(str(path)) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a.bin"]


def test_new_file_has_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "new") as file:
        file.write(b"1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_hash_is_cached_until_the_stamp_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "a.bin", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: reads.append(1) or digest(file, kind))
    path.write_bytes(b"one")
    assert file_sha256(path) == file_sha256(str(path)) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 2  # it has only just been written: a change would not show in its times
    assert stamp(path) == ()
    monkeypatch.setattr(files, "SETTLE_NS", -(10**18))
    assert [file_sha256(path), file_sha256(path)] == [hashlib.sha256(b"one").hexdigest()] * 2
    assert len(reads) == 3
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=times)
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest()
    assert stamp(tmp_path / "none") == ()


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "a.bin"
    if moment != "write":
        monkeypatch.setattr(os, moment, full)

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            if moment == "write":
                full()

    with pytest.raises(DiskError, match=r"a\.bin: cannot be written: the disk is full") as caught:
        write()
    assert isinstance(caught.value, GradinaError)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_device() -> None:
    with pytest.raises(DiskError, match="the disk is full"), atomic_write("/dev/full") as file:
        file.write(b"x" * 100_000)
    assert Path("/dev/full").is_char_device()


def test_errno_in_messages_of_rust(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the disk is full"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert names(tmp_path) == []


def test_device_is_written_directly() -> None:
    with atomic_write(os.devnull) as file:
        file.write(b"x")
    with pytest.raises(DiskError, match="a device or a pipe"), atomic_path(os.devnull):
        pytest.fail("a writer that renames would put a file in its place")
    assert not Path(os.devnull).is_file()


def test_private_files_of_writers_get_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_folder(tmp_path / "model") as part:
        os.close(os.open(part / "a.safetensors", os.O_CREAT, 0o600))
    with atomic_path(tmp_path / "a.safetensors") as part:
        part.chmod(0o600)
    for path in ("a.safetensors", "model/a.safetensors"):
        assert (tmp_path / path).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_errors_of_the_block_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "elsewhere")


def test_unwritable_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, words in (
        (tmp_path, "there is a folder of that name"),
        (tmp_path / "none" / "a.png", "its folder does not exist; make the folder first"),
        (tmp_path / "file" / "a.png", "is a file, no folder"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ):
        with pytest.raises(DiskError, match=words), atomic_write(path):
            pytest.fail("the block must not start")


def test_symlink_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as part:
        part.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def model_folder(path: Path) -> Path:
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    (path / "README.md").write_text("a card")
    (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"1")
    return path


def test_folder_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for _ in range(2):  # made new, then replaced
        with atomic_folder(path) as part:
            model_folder(part)
        assert names(path) == ["README.md", "model_index.json", "unet"]
        assert names(tmp_path) == ["model"]


def test_failure_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_folder(tmp_path / "model")

    def half() -> None:
        with atomic_folder(path) as part:
            (part / "half.json").write_text("{")
            full()

    with pytest.raises(DiskError, match="the disk is full"):
        half()
    assert "unet" in names(path)
    with monkeypatch.context() as patch, pytest.raises(DiskError), atomic_folder(path):
        patch.setattr(os, "fsync", full)
    assert "unet" in names(path)
    assert names(tmp_path) == ["model"]


def test_failed_swap_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = model_folder(tmp_path / "model"), Path.rename

    def one_rename_fails(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            full()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", one_rename_fails)
    with pytest.raises(DiskError), atomic_folder(path):
        pass
    assert "unet" in names(path)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("other", ["holiday.jpg", "unet/notes.py", ".git"])
def test_folder_with_other_files_is_not_replaced(tmp_path: Path, other: str) -> None:
    path = model_folder(tmp_path / "model")
    (path / other).write_bytes(b"mine")
    assert not replaceable(path)
    with pytest.raises(DiskError, match="other things than a model"), atomic_folder(path):
        pytest.fail("the block must not start")
    assert (path / other).read_bytes() == b"mine"


def test_replaceable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert replaceable(tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "diary.txt").write_text("no model here")
    assert not replaceable(tmp_path / "texts")
    (tmp_path / "pair").mkdir()
    for name in ("preprocessor_config.json", "model.safetensors"):
        (tmp_path / "pair" / name).write_text("")
    assert replaceable(tmp_path / "pair")
    linked = model_folder(tmp_path / "linked")
    (linked / "more").symlink_to(tmp_path / "texts")
    assert not replaceable(linked)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a file of that name"), atomic_folder(tmp_path / "file"):
        pytest.fail("the block must not start")


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADINA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "gradina"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/gradina")
    monkeypatch.setenv("GRADINA_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_names_are_cut_to_255_bytes(tmp_path: Path) -> None:
    assert with_ending(Path("a/b.jpg"), "-again.png") == Path("a/b-again.png")
    for letter in ("x", "é", "𠀀"):
        name = letter * (250 // len(letter.encode())) + ".png"
        cut = with_ending(tmp_path / name, "-18446744073709551615.png")
        assert len(os.fsencode(cut.name)) <= 255
        assert cut.name.rstrip("0123456789.png").strip(letter) == "-"
        cut.touch()
    name = os.fsdecode(b"caf\xe9.jpg")
    assert os.fsencode(with_ending(Path(name), ".latents").name) == b"caf\xe9.latents"


def test_checks_find_unwritable_paths_and_leave_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, words in (
        ("folder", "there is a folder of that name"),
        ("file/a.png", "a part of its path is a file"),
        ("none/a.png", "its folder does not exist"),
        ("x" * 300, "the name is too long"),
    ):
        with pytest.raises(DiskError, match=words):
            check_writable(tmp_path / path)
    for path, words in (("file", "a part of its path is a file"), ("a/" + "x" * 300, "the name is too long")):
        with pytest.raises(DiskError, match=words):
            check_writable_folder(tmp_path / path)
    with pytest.raises(DiskError, match="there is a file of that name, which is not replaced"):
        check_model_folder(tmp_path / "file")
    check_writable(tmp_path / "new.png")
    check_writable(tmp_path / "file")
    check_writable(os.devnull)
    check_writable_folder(tmp_path / "some" / "new" / "place")
    check_model_folder(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_checks_try_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refused)
    for check in (check_writable, check_writable_folder, check_model_folder):
        with pytest.raises(DiskError, match="there is no permission to write there"):
            check(tmp_path / "a")


def test_read_json_accepts_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, dict, "there is no such file"),
        (b"{", dict, "is no JSON"),
        (b"[" * 100_000, dict, "is no JSON"),
        (b"\xff\xfe\x00", dict, "is no JSON"),
        (b"[1]", dict, "expected a JSON object, got list"),
        (b"{}", list, "expected a JSON list, got dict"),
    ],
)
def test_read_json_names_the_file_in_one_line(content: bytes | None, kind: type, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{path}: {message}") as caught:
        read_json(path, kind)
    assert "\n" not in str(caught.value)
