"""Pictures and captions in tar files: the layout of webdataset, and folders packed as they are."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import logging
import lzma
import posixpath
import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from gradina.errors import DiskError, RecipeError
from gradina.files import atomic_write, cache_folder, check_writable_folder
from gradina.images.open import SUFFIXES, UNREAD, UNREAD_ADVICE, visible
from gradina.texts import Read
from gradina.training.data.captioned import GIVEN_WORDS, Captioned, Tell, caption_of_json, shown, spanned, trimmed
from gradina.training.data.sidecar import beside
from gradina.training.data.tables import is_table

log = logging.getLogger(__name__)

SHARD = re.compile(r".*\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)", re.IGNORECASE | re.DOTALL)
ARCHIVES = (".zip", ".7z", ".rar", ".zst", ".tzst", ".lz4", ".lzma")  # that are not read
PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))  # by their first bytes
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)
LINKS = 40  # from one to the next, at most

Member = tuple[Path, int, int]  # in which file its bytes lie, from where, and how many


def in_shard(path: Path, caption: str | None, read: Read, tell: Tell) -> list[Captioned]:
    """The pictures in a shard, in its order; without one for all, their captions are in members beside them.

    Where there is none, it is "". Raises RecipeError for what is no tar file, or is cut off.
    """
    members = _members(path, tell)
    for name in members:
        ending = PurePosixPath(name).suffix.lower()
        if ending in UNREAD:
            tell(f"{path}/{name}", f"is in a format that is not read, and left out; {UNREAD_ADVICE}")
        elif is_table(PurePosixPath(name).name) or SHARD.fullmatch(name) or ending in ARCHIVES:
            tell(f"{path}/{name}", "is not read in a shard; unpack it, and give the folder")
    pictures = [name for name in members if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if caption is not None:
        if any(beside(pictures, members, keyed=True).values()):
            tell(str(path), f'has captions that are not read, since "{shown(caption)}" is the caption of all pictures')
        return [Captioned(path, caption, name, GIVEN_WORDS, span=members[name]) for name in pictures]
    found = []
    for name, texts in beside(pictures, members, keyed=True).items():
        one = Captioned(path, "", name, span=members[name])
        for text in texts:
            ending = PurePosixPath(text).suffix.lower()
            said = trimmed(read(spanned(*members[text]), f"{path}/{text}"))
            said = caption_of_json(said, f"{path}/{text}", tell) if ending == ".json" else said
            if said:
                one = replace(one, caption=said, place=f"{ending} files")
                break
        found.append(one)
    return found


def _members(path: Path, tell: Tell) -> Mapping[str, Member]:
    """Where the visible files in a tar file lie, by name; links are what they lead to."""
    try:
        store, every, end = _listed(path)
        more = _goes_on(store, end)
        mark = spanned(store, end, tarfile.BLOCKSIZE)
    except DiskError:  # of the cache
        raise
    except DAMAGE as error:
        raise RecipeError(f"{path}: is no tar file, or is cut off ({error})") from error
    if more:
        raise RecipeError(f"{path}: goes on behind its end, as tar files joined by cat do; give each as a file")
    if not mark:
        tell(str(path), "has no mark of its end; if it was cut off, pictures are lost")
    named = {posixpath.normpath(member.name): member for member in every}
    found = {}
    for member in every:
        if not visible(member.name.split("/")) or member.isdir():
            continue
        true = _followed(member, named)
        if true is None or not true.isreg() or true.issparse():
            tell(f"{path}/{member.name}", "is no file, or a link to none, and is left out")
        else:
            if member.name in found:
                tell(f"{path}/{member.name}", "is there more than once, and the last is read, as tar unpacks it")
            found[member.name] = (store, true.offset_data, true.size)
    return found


def _listed(path: Path, again: bool = True) -> tuple[Path, list[tarfile.TarInfo], int]:
    """The file in which the members of a shard lie, the members, and where they end.

    What was unpacked before and is damaged since is unpacked `again`.
    """
    store = _unpacked(path)
    try:
        with tarfile.open(store, "r:") as shard:
            every, end = shard.getmembers(), shard.offset
        mark = spanned(store, end, tarfile.BLOCKSIZE)
        if mark.strip(b"\0") or 0 < len(mark) < tarfile.BLOCKSIZE:  # there, the library stops without a word
            raise tarfile.ReadError("unexpected end of data")
    except DAMAGE:
        if store == path:
            raise
        store.unlink()
        if not again:
            raise
        return _listed(path, again=False)
    return store, every, end


def _goes_on(path: Path, start: int) -> bool:
    """Whether there is more than zeros from a place in a file on."""
    with path.open("rb") as file:
        file.seek(start)
        return any(part.strip(b"\0") for part in iter(partial(file.read, 2**20), b""))


def _followed(member: tarfile.TarInfo, named: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member that a link, hard or symbolic, leads to in the end."""
    for _ in range(LINKS):
        if not (member.islnk() or member.issym()):
            return member
        folder = posixpath.dirname(member.name) if member.issym() else ""
        after = named.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        if after is None:
            return None
        member = after
    return None


def _unpacked(path: Path) -> Path:
    """The shard itself; of one that is compressed, what it holds, kept in the cache under the hash of its bytes."""
    with path.open("rb") as file:
        head = file.read(8)
        opened = next((open_packed for mark, open_packed in PACKED if head.startswith(mark)), None)
        if opened is None:
            return path
        file.seek(0)
        name = hashlib.file_digest(file, "sha256").hexdigest()[:24]
    place = cache_folder() / "shards" / f"{name}.tar"
    if not place.is_file():
        check_writable_folder(place.parent)
        log.info("unpacks %s", path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as unpacked, opened(path, "rb") as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
    return place
