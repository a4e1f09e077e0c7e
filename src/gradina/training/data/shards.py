"""Pictures and captions in tar shards: the layout of webdataset, or folders packed as they are."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import posixpath
import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from gradina.errors import DiskError, RecipeError
from gradina.files import atomic_write, cache_folder, check_writable_folder, file_sha256
from gradina.images.folder import CONVERT_ADVICE, SUFFIXES, UNSUPPORTED_SUFFIXES, is_visible
from gradina.texts import ReadText
from gradina.training.data.captioned_image import GIVEN_CAPTION, CaptionedImage, Note, read_span, shortened
from gradina.training.data.metadata_tables import is_table
from gradina.training.data.sidecars import first_caption, sidecars, suffix

log = logging.getLogger(__name__)

SHARD = re.compile(r".*\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)", re.IGNORECASE | re.DOTALL)
ARCHIVES = (".zip", ".7z", ".rar", ".zst", ".tzst", ".lz4", ".lzma")  # not read
DECOMPRESSORS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))  # by their first bytes
TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)
MAX_LINKS = 40  # in a chain

Span = tuple[Path, int, int]  # of a member: the file that holds its bytes, their start, their count


def read_shard(path: Path, caption: str | None, read: ReadText, note: Note) -> list[CaptionedImage]:
    """The pictures in a shard, in order, with the caption of all, or those of their sidecars, "" for none.

    Raises RecipeError for what is not a tar file, or is cut off.
    """
    members = _members(path, note)
    for name in members:
        ending = suffix(name)
        if ending in UNSUPPORTED_SUFFIXES:
            note(f"{path}/{name}", f"is in a format that is not read, and left out; {CONVERT_ADVICE}")
        elif is_table(PurePosixPath(name).name) or SHARD.fullmatch(name) or ending in ARCHIVES:
            note(f"{path}/{name}", "is not read in a shard; unpack it, and give the folder")
    pictures = [name for name in members if suffix(name) in SUFFIXES]
    texts = sidecars(pictures, members, keyed=True)
    if caption is not None:
        if any(texts.values()):
            why = f'since "{shortened(caption)}" is the caption of all pictures'
            note(str(path), f"has captions that are not read, {why}")
        return [CaptionedImage(path, caption, name, GIVEN_CAPTION, span=members[name]) for name in pictures]
    found = []
    for name in pictures:
        own, text = first_caption(
            texts[name], f"{path}/{{}}".format, lambda text: read_span(*members[text]), read, note
        )
        found.append(CaptionedImage(path, own, name, f"{suffix(text)} files" if own else "", span=members[name]))
    return found


def _members(path: Path, note: Note) -> Mapping[str, Span]:
    """The spans of the visible files in a tar file, by name; links are followed."""
    try:
        store, members, end = _list(path)
        more = _has_data_after(store, end)
        end_mark = read_span(store, end, tarfile.BLOCKSIZE)
    except DiskError:  # from the cache
        raise
    except TAR_ERRORS as error:
        raise RecipeError(f"{path}: is not a tar file, or is cut off ({error})") from error
    if more:
        raise RecipeError(f"{path}: has data after its end, as concatenated tar files do; give each as a file")
    if not end_mark:
        note(str(path), "has no end-of-archive mark; if it was cut off, pictures are missing")
    named = {posixpath.normpath(member.name): member for member in members}
    found = {}
    for member in members:
        if not is_visible(member.name.split("/")) or member.isdir():
            continue
        target = _follow(member, named)
        if target is None or not target.isreg() or target.issparse():
            note(f"{path}/{member.name}", "is not a file, or a broken link, and is left out")
        else:
            if member.name in found:
                note(f"{path}/{member.name}", "is in the shard more than once, and the last is read, as by tar")
            found[member.name] = (store, target.offset_data, target.size)
    return found


def _list(path: Path, retry: bool = True) -> tuple[Path, list[tarfile.TarInfo], int]:
    """The uncompressed file of a shard, its members, and the end of the last.

    With `retry`, a damaged file in the cache is made again.
    """
    store = _decompress(path)
    try:
        with tarfile.open(store, "r:") as shard:
            members, end = shard.getmembers(), shard.offset
        mark = read_span(store, end, tarfile.BLOCKSIZE)
        if mark.strip(b"\0") or 0 < len(mark) < tarfile.BLOCKSIZE:  # where tarfile stops silently
            raise tarfile.ReadError("unexpected end of data")
    except TAR_ERRORS:
        if store == path:
            raise
        store.unlink()
        if not retry:
            raise
        return _list(path, retry=False)
    return store, members, end


def _has_data_after(path: Path, start: int) -> bool:
    """Whether a file has anything but zeros from `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        return any(part.strip(b"\0") for part in iter(partial(file.read, 2**20), b""))


def _follow(member: tarfile.TarInfo, named: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member that a hard or symbolic link leads to in the end."""
    for _ in range(MAX_LINKS):
        if not (member.islnk() or member.issym()):
            return member
        folder = posixpath.dirname(member.name) if member.issym() else ""
        target = named.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        if target is None:
            return None
        member = target
    return None


def _decompress(path: Path) -> Path:
    """The shard itself; for a compressed one the tar file in it, kept in the cache under the hash of its bytes."""
    with path.open("rb") as file:
        head = file.read(8)
    decompressor = next((opener for magic, opener in DECOMPRESSORS if head.startswith(magic)), None)
    if decompressor is None:
        return path
    target = cache_folder() / "shards" / f"{file_sha256(path)[:24]}.tar"
    if not target.is_file():
        check_writable_folder(target.parent)
        log.info("unpacking %s", path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as unpacked, decompressor(path, "rb") as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
    return target
