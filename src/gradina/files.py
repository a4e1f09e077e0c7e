"""Atomic writes of files and folders: to a temporary name in the same folder, then renamed.

A full disk, a crash or Ctrl-C leaves the old content. Also the cache folder, and hashes of files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from gradina.errors import DiskError, WeightsError

# The files of a model folder in the diffusers layout; see atomic_folder.
MODEL_INDEXES = ("model_index.json", "preprocessor_config.json")  # of a whole model, or of a contrastive pair
MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".md")

CAUSES = {
    errno.ENOSPC:  "the disk is full; make room and write it again",
    errno.EDQUOT:  "your disk quota is used up; make room and write it again",
    errno.EFBIG:   "the file is too large for this disk; choose another",
    errno.EROFS:   "the disk is read-only; choose another place",
    errno.EIO:     "the disk reports a fault; choose another",
    errno.EACCES:  "there is no permission to write there; choose another place",
    errno.EPERM:   "there is no permission to write there; choose another place",
    errno.ENOENT:  "its folder does not exist; make the folder first",
    errno.ENOTDIR: "a part of its path is a file, no folder; choose another place",
    errno.EISDIR:  "there is a folder of that name; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}  # fmt: skip
MAX_NAME_BYTES = 255  # of a file name, on all usual file systems
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # raised only by writing


def cache_folder() -> Path:
    """The folder of everything that can be made again: $GRADINA_CACHE, or `gradina` in the user's cache."""
    base = os.environ.get("GRADINA_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradina"


Stamp = tuple[int, ...]  # of a file: size, mtime and ctime in ns, inode, device; (): none
SETTLE_NS = 2 * 10**9  # after which a change of a file shows in its times, on all usual file systems

_hashes: dict[str, tuple[Stamp, str]] = {}


def stamp(path: str | PathLike[str]) -> Stamp:
    """A value that changes with a file; () for one that does not exist, or has changed in the last two seconds."""
    try:
        s = os.stat(path)
    except OSError:
        return ()
    settled = time.time_ns() - max(s.st_mtime_ns, s.st_ctime_ns) > SETTLE_NS
    return (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) if settled else ()


def file_sha256(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file, read again only when its stamp has changed; raises OSError."""
    name, current = os.path.realpath(path), stamp(path)
    hashed, digest = _hashes.get(name, ((), ""))
    if current and current == hashed:
        return digest
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _hashes[name] = current, digest
    return digest


def read_json(path: Path, kind: type = dict) -> Any:
    """The object in a JSON file of a model, or the list where `kind` is list. Raises WeightsError, naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte-order mark
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file; fetch or save the folder again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is no JSON ({error}); fetch or save it again") from error
    if not isinstance(content, kind):
        expected = "list" if kind is list else "object"
        raise WeightsError(f"{path}: expected a JSON {expected}, got {type(content).__name__}; fetch or save it again")
    return content


def write_json(path: Path, content: object) -> None:
    """Writes JSON of two spaces' indent, in a folder that is made where it is missing."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def _temporary(target: Path, kind: str) -> Path:
    """An unused hidden name in the folder of `target`, to which it can be renamed."""
    with suppress(FileNotFoundError):
        target.lstat()  # raises for an invalid name before any work is done
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.{kind}")


def with_ending(path: Path, ending: str) -> Path:
    """The path with `ending` in place of its suffix; its stem is cut to what a file name can hold."""
    room, stem = MAX_NAME_BYTES - len(os.fsencode(ending)), os.fsencode(path.stem)
    return path.with_name((path.stem if len(stem) <= room else stem[:room].decode("utf-8", "ignore")) + ending)


def unused_path(path: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3, ... that does not exist."""
    free, n = path, 2
    while os.path.lexists(free):
        free, n = with_ending(path, f"-{n}{path.suffix}"), n + 1
    return free


def check_writable(path: str | PathLike[str]) -> None:
    """Raises DiskError, with the cause, where no file can be written at `path`."""
    target = Path(os.path.realpath(path))
    with _as_disk_error(path):
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _is_device(target):
            _create(target).unlink()  # since permissions alone do not tell
        elif not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_writable_folder(path: str | PathLike[str]) -> None:
    """Raises DiskError where `path` is no folder that can be written to, and none can be made."""
    folder, missing = Path(os.path.realpath(path)), []
    with _as_disk_error(path):
        while not folder.exists():
            missing.append(folder.name)
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for name in (*missing, "probe"):
            _create(folder / name).unlink()


def check_model_folder(path: str | PathLike[str]) -> None:
    """Raises DiskError where `atomic_folder` would, to be called before a model is loaded."""
    target = Path(os.path.realpath(path))
    _check_replaceable(path, target)
    with _as_disk_error(path):
        _create(target).unlink()


def _create(target: Path) -> Path:
    """An empty temporary file in the folder of `target`."""
    temporary = _temporary(target, "part")
    temporary.touch(exist_ok=False)
    return temporary


def _sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _errno(error: Exception) -> int | None:
    """The `errno` of an error, which writers in Rust give in the message alone."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"(?:os error|code:) (\d+)", str(error))
    return int(match[1]) if match else None


@contextmanager
def _as_disk_error(path: str | PathLike[str], only: Container[int] | None = None) -> Iterator[None]:
    """Turns errors of the operating system, or those in `only`, into a DiskError that names `path`."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number is None or (only is not None and number not in only) or isinstance(error, DiskError):
            raise
        cause = CAUSES.get(number, f"{os.strerror(number)}; choose another place")
        disk_error = DiskError(f"{path}: cannot be written: {cause}")
        disk_error.errno = number
        raise disk_error from error


def _is_device(path: str | PathLike[str]) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """The path of an empty file to fill; it becomes `path` when the block ends well, and is removed when not.

    For writers that need a path; others take `atomic_write`. A symbolic link is written through. Raises DiskError.
    """
    target = Path(os.path.realpath(path))
    if _is_device(path):  # which such writers would replace by a file
        raise DiskError(f"{path}: cannot be written: it is a device or a pipe; give the name of a file")
    with _as_disk_error(path):
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = _create(target)
        mode = temporary.stat().st_mode
    try:
        with _as_disk_error(path, only=WRITE_ERRORS):
            yield temporary
        with _as_disk_error(path):
            temporary.chmod(mode)  # the writer may have replaced it by a private file
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and is removed when it does not.

    A device or a pipe is written directly. Raises DiskError, with the cause.
    """
    if _is_device(path):
        with _as_disk_error(path), open(path, "wb") as file:
            yield file
    else:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            yield file


def replaceable(folder: Path) -> bool:
    """Whether a folder is empty, or has one of MODEL_INDEXES and only folders and plain files of MODEL_SUFFIXES."""
    entries = list(folder.rglob("*"))
    plain = all(
        not entry.is_symlink() and (entry.is_dir() or (entry.is_file() and entry.suffix in MODEL_SUFFIXES))
        for entry in entries
    )
    return not entries or (plain and any((folder / name).is_file() for name in MODEL_INDEXES))


@contextmanager
def atomic_folder(path: str | PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill; it becomes `path` when the block ends well, and is removed when it does not.

    An existing folder is replaced only if it is `replaceable`, by two renames; a power cut between them leaves both,
    the old one as `.NAME.*.old`. Raises DiskError.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(path, target)
    with _as_disk_error(path):
        temporary = _temporary(target, "part")
        temporary.mkdir()
    try:
        with _as_disk_error(path, only=WRITE_ERRORS):
            yield temporary
        with _as_disk_error(path):
            for entry in temporary.rglob("*"):
                entry.chmod(temporary.stat().st_mode if entry.is_dir() else temporary.stat().st_mode & 0o666)
                _sync(entry)
            _sync(temporary)
            _swap(temporary, target)
            _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(path: str | PathLike[str], target: Path) -> None:
    with _as_disk_error(path):
        exists = os.path.lexists(target)
    if exists and not (target.is_dir() and replaceable(target)):
        what = "a folder with other things than a model in it" if target.is_dir() else "a file of that name"
        raise DiskError(f"{path}: there is {what}, which is not replaced; choose another name or remove it first")


def _swap(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = _temporary(target, "old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
