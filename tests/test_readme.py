"""The README says what is true: its examples run, its tree is the tree, its options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import gradina
from gradina.apps.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", README + PERFORMANCE, re.S) for kind in ("python", "sh")}


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS["python"]:
        exec(compile(block, "README.md", "exec"), names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1024.png", "1025.png", "1026.png", "1027.png"]


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    for name in ("photo.png", "sketch.png"):
        Image.linear_gradient("L").save(name)
    commands = [line for block in BLOCKS["sh"] for line in block.splitlines() if line.startswith("gradina ")]
    ran = 0
    for command in commands:
        arguments = shlex.split(command.replace("--minutes 5", "--minutes 0.2"), comments=True)[1:]
        if arguments[0] != "train" and "-m" not in arguments:
            quick = ["-m", "digits"] if {"tune", "--preset"} & set(arguments) else []
            assert main([*arguments, *quick]) == 0, command
            ran += 1
    assert ran >= 13


def tree(page: str) -> set[str]:
    """The paths that the tree of a page lists."""
    block = re.findall(r"```\n(src/gradina/.*?)```", page, re.S)[0]
    folders: list[str] = []
    listed = set()
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        listed.add("".join(folders))
    return listed


def test_the_tree_of_the_design_is_the_tree() -> None:
    listed = tree((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    source = Path(gradina.__file__).parent
    files = {
        f"src/gradina/{p.relative_to(source)}"
        for p in source.rglob("*.py")
        if p.name != "__init__.py" or p.parent == source
    }
    assert {name for name in listed if name.endswith(".py")} == files
    assert all((ROOT / name).exists() for name in listed)


def test_the_tree_of_the_readme_has_all_folders() -> None:
    listed = tree(README)
    source = Path(gradina.__file__).parent
    folders = {f"src/gradina/{p.name}/" for p in source.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert {name for name in listed if name.startswith("src/gradina/")} == folders | {"src/gradina/"}
    assert all((ROOT / name).exists() for name in listed)


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 180
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_local_links_and_named_files_exist(page: str) -> None:
    """Links are relative to the page; what is named in code as a file of evaluation or benchmarks, to the root."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link} - {""}
    named = set(re.findall(r"(?:benchmarks|evaluation|tests)/[\w./-]+\.(?:py|json)", text))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_choices_are_the_choices() -> None:
    from gradina.request import SAMPLER_NAMES, SCHEDULE_NAMES

    assert f"Samplers: {', '.join(SAMPLER_NAMES)}." in README.replace("\n", " ")
    assert f"Schedules: {', '.join(SCHEDULE_NAMES)}." in README.replace("\n", " ")
