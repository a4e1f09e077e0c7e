"""Each lesson runs, in its short form, in at most a minute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "lessons").glob("[0-9]*.py"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_it_runs(lesson: Path, tmp_path: Path) -> None:
    here = {"LESSON": "short", "MPLBACKEND": "agg", "PYTHONPATH": str(lesson.parent)}
    environment = {**os.environ, **here, "OMP_NUM_THREADS": "1"}  # as all tests: others run beside it
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", lesson],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert done.stdout.strip()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_it_reads_as_a_lesson(lesson: Path) -> None:
    """A title with its number, text between the code, and something to try in the end."""
    text = lesson.read_text()
    number = int(lesson.stem.partition("_")[0])
    assert re.search(rf"^# # {number}\. ", text, re.M)
    assert text.count("# %% [markdown]") >= 3
    assert "# ## What to try next" in text


def test_they_are_numbered_without_a_gap() -> None:
    assert [int(path.stem.partition("_")[0]) for path in LESSONS] == list(range(1, len(LESSONS) + 1))
