"""CONTRIBUTING.md: its examples run, in order, and the files that it names exist."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gradina import request
from gradina.diffusion.samplers import SAMPLERS
from gradina.diffusion.schedule import SCHEDULES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_python_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "SAMPLER_NAMES", (*request.SAMPLER_NAMES, "ralston"))  # step 3 edits a file
    names: dict[str, Any] = {}
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", PAGE, re.DOTALL | re.MULTILINE)
    with patch.dict(SAMPLERS), patch.dict(SCHEDULES):
        for _, block in blocks:
            exec(compile(textwrap.dedent(block), "CONTRIBUTING.md", "exec"), names)
    assert len(blocks) >= 8
    assert names["picture"].request.sampler == "ralston"
    assert "ralston" not in SAMPLERS


def test_the_named_files_exist() -> None:
    named = set(re.findall(r"`((?:src|tests|recipes|docs)/[\w./]*)`", PAGE))
    assert len(named) >= 12
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_named_tests_exist() -> None:
    named = re.findall(r"pytest (tests/\S+)", PAGE)
    assert named
    assert all((ROOT / name).exists() for name in named)
