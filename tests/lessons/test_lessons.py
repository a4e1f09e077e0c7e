"""Each lesson runs in its short form in at most a minute, and its page has its code."""

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
def test_lesson_runs(lesson: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(filter(None, (str(lesson.parent), os.environ.get("PYTHONPATH"))))
    short = {"LESSON": "short", "MPLBACKEND": "agg", "PYTHONPATH": paths}
    environment = {**os.environ, **short, "OMP_NUM_THREADS": "1"}  # as all tests, which may run in parallel
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
def test_lesson_has_title_text_and_exercises(lesson: Path) -> None:
    """A numbered title, text between the code cells, and something to try at the end."""
    text = lesson.read_text()
    number = int(lesson.stem.partition("_")[0])
    assert re.search(rf"^# # {number}\. ", text, re.M)
    assert text.count("# %% [markdown]") >= 3
    assert "# ## What to try next" in text


def test_lessons_are_numbered_without_gaps() -> None:
    assert [int(path.stem.partition("_")[0]) for path in LESSONS] == list(range(1, len(LESSONS) + 1))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_page_has_the_code_of_the_lesson(lesson: Path) -> None:
    page = (ROOT / "docs" / "lessons" / f"{lesson.stem}.md").read_text()
    cells = [cell.partition("\n") for cell in re.split(r"^# %%", lesson.read_text(), flags=re.M)[1:]]
    code = [body.strip() for kind, _, body in cells if "[markdown]" not in kind]
    assert [block.strip() for block in re.findall(r"```python\n(.*?)```", page, re.S)] == code
