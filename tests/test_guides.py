"""The guides work as they are written: here with few steps, and every picture that they show is there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from gradina.apps.cli.main import main

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
FEW = {"--steps": "2", "--states-steps": "1", "--sample-every": "2", "--class-pictures": "1", "--batch": "1"}


def commands(page: Path) -> list[list[str]]:
    """What a page's blocks say, as lists of arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GUIDES / "dolls", tmp_path / "dolls")
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    for program, *arguments in commands(page):
        if program == "cp":
            shutil.copy(*arguments)
            continue
        assert program == "gradina"
        few = [FEW.get(before, one) for before, one in zip(["", *arguments], arguments, strict=False)]
        drawing = arguments[0] not in ("finetune", "invert", "dreambooth", "imagic")
        assert main([*few, "--steps", "2"] if drawing else few) == 0, arguments
    made = {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()}
    assert made == set(re.findall(r"!\[.*?\]\((.*?)\)", page.read_text()))


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_points_at_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^):]*)\)", page.read_text()):
        assert (GUIDES / target).exists(), target
