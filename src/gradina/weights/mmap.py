"""Pages of mapped files given back once their numbers have been copied: a model then is not in memory twice.

Only Linux says which pages belong to a file; elsewhere nothing is given back, and the system takes them when it must.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

NO_LONGER_NEEDED = 4  # MADV_DONTNEED: of a file's page, that it is read again if it is asked for again


class Mapped:
    """The ranges of addresses in which files lie."""

    def __init__(self, *files: Path) -> None:
        self.ranges: list[tuple[int, int]] = []
        if sys.platform != "linux" or not Path("/proc/self/maps").is_file():
            return
        self.library = ctypes.CDLL(None)
        names = {str(file.resolve()) for file in files}
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            span, rights, _, _, _, *name = line.split(maxsplit=5)
            if name and name[0] in names and rights.endswith("p"):
                start, _, end = span.partition("-")
                self.ranges.append((int(start, 16), int(end, 16)))

    def release(self, x: Tensor) -> None:
        """Lets go of the pages that lie wholly in a tensor of one of the files; of others, nothing."""
        start, page = x.data_ptr(), mmap.PAGESIZE
        first, last = -(-start // page) * page, (start + x.nbytes) // page * page
        if last > first and any(low <= first and last <= high for low, high in self.ranges):
            self.library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), NO_LONGER_NEEDED)
