"""The foundations as a whole."""

from __future__ import annotations

import sys
from pathlib import Path

import gradina.foundations


def test_imports_nothing_but_the_standard_library() -> None:
    allowed = {"__future__", "gradina", *sys.stdlib_module_names} - {"array", "ctypes"}
    for path in Path(gradina.foundations.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] in allowed, f"{path.name}: {line}"
                assert not words[1].startswith("gradina") or words[1].startswith("gradina.foundations")
