"""Folders as kohya's scripts read them: pictures in `10_sks dog` are drawn ten times as often, as "sks dog"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from gradina.training.data.captioned import Tell

NUMBERED = re.compile(r"(\d+)_(.*\S.*)")
MOST = 1000  # times; what is more is a year, a date, or the number of something


def repeated(source: str, pictures: Sequence[str], tell: Tell) -> dict[str, tuple[int, str]]:
    """How often pictures are drawn, and their words, by the folder just below `source`: where all lie in such folders.

    A note says where some do, and it is not meant so.
    """
    tops = dict.fromkeys(PurePosixPath(name).parts[0] for name in pictures if "/" in name)
    loose = any("/" not in name for name in pictures)
    found = {top: (int(match[1]), match[2].strip()) for top in tops if (match := NUMBERED.fullmatch(top))}
    if found and not loose and len(found) == len(tops) and all(meant(top) for top in tops):
        return found
    below = (part for name in pictures for part in PurePosixPath(name).parts[:-1] if meant(part))
    for folder in dict.fromkeys(below):
        why = f"not every picture lies in such a folder just below {source}"
        tell(folder, f"is not read as a number of repeats and words, as kohya's scripts read it: {why}")
    return {}


def meant(folder: str) -> bool:
    """Whether a name says how often: 10_sks dog; but not 2023_holiday, nor 01_summer, nor 0_none."""
    match = NUMBERED.fullmatch(folder)
    return match is not None and not folder.startswith("0") and len(match[1]) <= 4 and int(match[1]) <= MOST
