"""What the lessons share: how much of each is done. `LESSON=short` does the same with less, in at most a minute."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
SHORT = os.environ.get("LESSON") == "short"


def whole(much: T, little: T) -> T:
    """`much` where a lesson is executed as a whole, `little` where it is tried."""
    return little if SHORT else much
