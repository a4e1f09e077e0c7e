"""Files and folders that appear whole or not at all: written beside their place, then moved into it.

A full disk, a crash or Ctrl-C leaves what was there before.
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

# What a model folder in the diffusers layout consists of; see atomic_folder.
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
NAME_BYTES = 255  # of a file's name, on all usual file systems
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # faults that only writing meets


def cache_folder() -> Path:
    """Where is kept what can be made again: $GRADINA_CACHE, or `gradina` in the user's cache."""
    base = os.environ.get("GRADINA_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradina"


Stamp = tuple[int, ...]  # of a file: size, time of its content and of its entry in ns, inode, device; (): it has none
SETTLED = 2 * 10**9  # nanoseconds after which a change of a file shows in its times, on all usual file systems

_hashed: dict[str, tuple[Stamp, str]] = {}


def stamp(path: str | PathLike[str]) -> Stamp:
    """What is another after any change of a file; () for one that is not there, or that has only just changed."""
    try:
        s = os.stat(path)
    except OSError:
        return ()
    settled = time.time_ns() - max(s.st_mtime_ns, s.st_ctime_ns) > SETTLED
    return (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) if settled else ()


def content(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file, by which it is known wherever it lies; read once, as long as its stamp stays. OSError."""
    name, now = os.path.realpath(path), stamp(path)
    then, known = _hashed.get(name, ((), ""))
    if now and now == then:
        return known
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _hashed[name] = now, found
    return found


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


def _beside(target: Path, kind: str) -> Path:
    """A name nobody has, hidden, in the same folder as `target`, so that moving it there is one rename."""
    with suppress(FileNotFoundError):
        target.lstat()  # the system's own word on the name, before any work is done
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.{kind}")


def with_ending(path: Path, ending: str) -> Path:
    """The path whose name is the stem of `path` and then `ending`; a stem of too many bytes is cut."""
    room, stem = NAME_BYTES - len(os.fsencode(ending)), os.fsencode(path.stem)
    return path.with_name((path.stem if len(stem) <= room else stem[:room].decode("utf-8", "ignore")) + ending)


def unused(path: Path) -> Path:
    """The path, or the next one of its kind that does not exist yet."""
    free, n = path, 2
    while os.path.lexists(free):
        free, n = with_ending(path, f"-{n}{path.suffix}"), n + 1
    return free


def check_writable(path: str | PathLike[str]) -> None:
    """Raises DiskError, which says what stands in the way, where no file can be written at `path`."""
    target = Path(os.path.realpath(path))
    with _as_disk_error(path):
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _is_device(target):
            _probe(target)
        elif not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_writable_folder(path: str | PathLike[str]) -> None:
    """Raises DiskError where `path` is no folder that can be written to, and none can be made."""
    there, missing = Path(os.path.realpath(path)), []
    with _as_disk_error(path):
        while not there.exists():
            missing.append(there.name)
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for name in (*missing, "probe"):
            _probe(there / name)


def check_model_folder(path: str | PathLike[str]) -> None:
    """Raises DiskError where `atomic_folder` would: before a model is read that is to be written to `path`."""
    target = Path(os.path.realpath(path))
    _admit_folder(path, target)
    with _as_disk_error(path):
        _probe(target)


def _probe(target: Path) -> None:
    """Makes an empty file beside `target`, and removes it: what permissions say is not always what holds."""
    part = _beside(target, "part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    part.unlink()


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number(error: Exception) -> int | None:
    """The operating system's number of an error; writers made in Rust only spell it out."""
    if isinstance(error, OSError):
        return error.errno
    spelt = re.search(r"(?:os error|code:) (\d+)", str(error))
    return int(spelt[1]) if spelt else None


@contextmanager
def _as_disk_error(path: str | PathLike[str], only: Container[int] | None = None) -> Iterator[None]:
    """Turns the operating system's refusals (those numbered in `only`) into a DiskError that names `path`."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None or (only is not None and number not in only) or isinstance(error, DiskError):
            raise
        cause = CAUSES.get(number, f"{os.strerror(number)}; choose another place")
        refused = DiskError(f"{path}: cannot be written: {cause}")
        refused.errno = number
        raise refused from error


def _is_device(path: str | PathLike[str]) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """The path of an empty file to fill; it becomes `path` when the block ends well, and is removed when not.

    For writers that want a name; others take `atomic_write`. A symbolic link is written through. Raises DiskError.
    """
    target = Path(os.path.realpath(path))
    if _is_device(path):  # such writers put a new file in its place
        raise DiskError(f"{path}: cannot be written: it is a device or a pipe; give the name of a file")
    with _as_disk_error(path):
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part = _beside(target, "part")
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = part.stat().st_mode
    try:
        with _as_disk_error(path, only=WRITING):
            yield part
        with _as_disk_error(path):
            part.chmod(mode)  # a writer may have put a private file there
            _sync(part)
            os.replace(part, target)
            _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and is removed when it does not.

    A device or a pipe is written directly. Raises DiskError, which says what stands in the way.
    """
    if _is_device(path):
        with _as_disk_error(path), open(path, "wb") as file:
            yield file
    else:
        with atomic_path(path) as part, open(part, "wb") as file:
            yield file


def replaceable(folder: Path) -> bool:
    """Whether `folder` holds nothing that saving a model could not have written.

    That is: it is empty, or has one of MODEL_INDEXES, and besides folders only plain files (no links) that are
    named .json, .safetensors, .txt or .md.
    """
    entries = list(folder.rglob("*"))
    plain = all(
        not entry.is_symlink() and (entry.is_dir() or (entry.is_file() and entry.suffix in MODEL_SUFFIXES))
        for entry in entries
    )
    return not entries or (plain and any((folder / name).is_file() for name in MODEL_INDEXES))


@contextmanager
def atomic_folder(path: str | PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill; it becomes `path` when the block ends well, and is removed when it does not.

    A folder already there is replaced only if it is `replaceable`: a model folder with nothing else in it.
    The two change places by two renames; a power cut between them leaves both, the old one as `.NAME.*.old`.
    Raises DiskError.
    """
    target = Path(os.path.realpath(path))
    _admit_folder(path, target)
    with _as_disk_error(path):
        part = _beside(target, "part")
        part.mkdir()
    try:
        with _as_disk_error(path, only=WRITING):
            yield part
        with _as_disk_error(path):
            for entry in part.rglob("*"):
                entry.chmod(part.stat().st_mode if entry.is_dir() else part.stat().st_mode & 0o666)
                _sync(entry)
            _sync(part)
            _swap(part, target)
            _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _admit_folder(path: str | PathLike[str], target: Path) -> None:
    with _as_disk_error(path):
        there = os.path.lexists(target)
    if there and not (target.is_dir() and replaceable(target)):
        what = "a folder with other things than a model in it" if target.is_dir() else "a file of that name"
        raise DiskError(f"{path}: there is {what}, which is not replaced; choose another name or remove it first")


def _swap(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
