"""Picture files in folders, found by their names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from gradina.errors import PictureError

log = logging.getLogger(__name__)

SUFFIXES = (  # of the formats that are read
    ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
UNSUPPORTED_SUFFIXES = (  # of picture formats that are not read
    ".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw",
    ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".mrw", ".rwl",
)  # fmt: skip
CONVERT_ADVICE = "convert them to PNG or JPEG"
SYSTEM_FOLDERS = {  # thumbnails and recycle bins, in small letters
    "@eadir", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip


def is_visible(parts: Iterable[str]) -> bool:
    """Whether no part of a path is hidden or a system folder."""
    return not any(
        (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_FOLDERS for name in parts
    )


def files_in(folder: Path) -> list[Path]:
    """The visible files in a folder and its subfolders, in order; links to folders outside are followed.

    A warning names a folder that cannot be read.
    """

    def warn(error: OSError) -> None:
        log.warning("%s: cannot be read (%s), and is left out", error.filename, error.strerror)

    found, root = [], os.path.realpath(folder)
    visited = {root}
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=warn):
        subfolders[:] = sorted(
            name for name in subfolders if is_visible([name]) and _is_unvisited(Path(parent, name), root, visited)
        )
        found += [Path(parent, name) for name in sorted(names) if is_visible([name])]
    return found


def _is_unvisited(path: Path, root: str, visited: set[str]) -> bool:
    """Whether a folder is to be entered, which is then visited: not again, and no link into or above `root`."""
    target = os.path.realpath(path)
    overlaps = Path(target).is_relative_to(root) or Path(root).is_relative_to(target)
    if target in visited or (path.is_symlink() and overlaps):
        return False
    visited.add(target)
    return True


def pictures_in(folder: Path, files: list[Path] | None = None) -> list[Path]:
    """The visible files in a folder and its subfolders with the suffix of a picture, in order, or those of `files`.

    Warnings count those in formats that are not read, such as HEIC, and broken links. Raises PictureError where all
    are in such formats.
    """
    files = files_in(folder) if files is None else files
    named = [path for path in files if path.suffix.lower() in SUFFIXES]
    found = [path for path in named if path.is_file()]
    broken = [path for path in named if path.is_symlink() and not path.exists()]
    if broken:
        names = _first_three(broken, folder)
        log.warning("%s: %d links to pictures lead to nothing (%s), and are left out", folder, len(broken), names)
    unread = [path for path in files if path.suffix.lower() in UNSUPPORTED_SUFFIXES and path.is_file()]
    if unread:
        kinds = f"{', '.join(sorted({path.suffix.lower() for path in unread}))}: {_first_three(unread, folder)}"
        message = f"{folder}: {len(unread)} pictures are in formats that are not read ({kinds})"
        if not found:
            raise PictureError(f"{message}; {CONVERT_ADVICE}")
        log.warning("%s, and left out; %s", message, CONVERT_ADVICE)
    return found


def _first_three(paths: list[Path], folder: Path) -> str:
    return ", ".join(str(path.relative_to(folder)) for path in paths[:3]) + (", ..." if paths[3:] else "")
