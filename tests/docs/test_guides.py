"""The commands of the guides run as written, with fewer steps, and make every picture that the guides show."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from gradina.apps.cli.main import main

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
FEWER = {"--steps": "2", "--states-steps": "1", "--sample-every": "2", "--class-pictures": "1", "--batch": "1"}


def commands(page: Path) -> list[list[str]]:
    """The commands in a page's sh blocks, as lists of arguments."""
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
        fewer = [FEWER.get(option, value) for option, value in zip(["", *arguments], arguments, strict=False)]
        draws = arguments[0] not in ("finetune", "invert", "dreambooth", "imagic")
        assert main([*fewer, "--steps", "2"] if draws else fewer) == 0, arguments
    written = {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()}
    assert written == set(re.findall(r"!\[.*?\]\((.*?)\)", page.read_text()))


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_link_targets_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^):]*)\)", page.read_text()):
        assert (GUIDES / target).exists(), target
