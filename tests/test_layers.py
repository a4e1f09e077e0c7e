"""Imports go one way: what is above may import what is below, never the other way round."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradina

ROOT = Path(gradina.__file__).parent
GROUND = {"errors", "request", "metadata", "images", "infotext", "files", "pictures", "sheet", "ineffective", "texts"}

# What each room may import, beside itself and the ground floor; a room that is not here may not exist.
ALLOWED: dict[str, set[str]] = {
    "nn": set(),
    "models": {"nn"},
    "diffusion": set(),
    "adapters": {"models", "nn"},
    "weights": {"adapters", "models", "diffusion", "nn"},
    "runtime": {"models", "diffusion", "nn"},
    "engines": {"weights", "runtime", "models", "nn"},
    "finite": set(),
    "offload": {"adapters", "weights", "nn"},
    "metrics": set(),
    "foundations": set(),
    "pipeline": {"adapters", "finite", "offload", "weights", "engines", "runtime", "models", "diffusion", "nn"},
    "captioning": set(),
    "tuning": {"pipeline", "metrics"},
    "codec": {"pipeline", "weights", "runtime", "metrics", "models", "diffusion", "nn"},
    "similarity": {"finite", "weights", "runtime", "models", "nn"},
    "training": {
        "adapters",
        "pipeline",
        "codec",
        "similarity",
        "weights",
        "runtime",
        "metrics",
        "models",
        "diffusion",
        "nn",
    },
    "bench": {"training", "tuning", "pipeline", "weights", "engines", "runtime", "models", "diffusion", "nn"},
    "apps": {
        "bench",
        "training",
        "tuning",
        "captioning",
        "pipeline",
        "codec",
        "similarity",
        "weights",
        "runtime",
        "metrics",
        "models",
        "diffusion",
        "nn",
    },
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of gradina that a file imports, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" if node.module == "gradina" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("gradina.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    allowed = GROUND | ALLOWED.get(here, set()) | {here}
    if here in GROUND:
        # Picture.save writes its file: the one place where the ground floor's parts know each other both ways.
        allowed = GROUND
    assert imports(path) <= allowed, f"{here} may not import {sorted(imports(path) - allowed)}"


def test_every_room_has_its_place() -> None:
    assert {room(p) for p in FILES} - {"__init__"} <= GROUND | set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_references_are_never_imported(path: Path) -> None:
    names = [
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert not {name.split(".")[0] for name in names} & {"diffusers", "transformers", "torchvision", "scipy"}
