"""Imports go one way: what is above may import what is below, never the other way round, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gradina

ROOT = Path(gradina.__file__).parent
GROUND = {"errors", "request", "request_checks", "files", "texts", "ineffective", "finite", "images"}

# What each layer may import, beside itself and the ground floor; a layer that is not here may not exist.
NETWORKS = {"nn", "models", "diffusion"}
FILES = {"weights", "adapters", "runtime"}
ALLOWED: dict[str, set[str]] = {
    "kernels": set(),
    "nn": {"kernels"},
    "models": {"nn"},
    "diffusion": set(),
    "adapters": {"models", "nn"},
    "weights": {*NETWORKS, "adapters"},
    "runtime": {*NETWORKS, "kernels", "weights", "adapters"},
    "pipeline": {*NETWORKS, *FILES},
    "tasks": {*NETWORKS, *FILES, "pipeline"},
    "training": {*NETWORKS, *FILES, "pipeline", "tasks"},
    "foundations": set(),
    "bench": {*NETWORKS, *FILES, "pipeline", "tasks", "training"},
    "apps": {*NETWORKS, *FILES, "pipeline", "tasks", "training", "bench"},
}
MODULES = {
    ".".join(("gradina", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
REFERENCES = {"diffusers", "transformers", "torchvision", "scipy"}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, also inside functions, for type checking and by import_module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "import_module", "importlib.import_module", "__import__",
        }:  # fmt: skip
            names = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            assert names or path == ROOT / "__init__.py", f"{path}: import_module of a name that is not written there"
        yield from names


def ours(module: str) -> set[str]:
    """The modules of gradina that a module imports."""
    return {name for name in imports(MODULES[module]) if name in MODULES} - {"gradina", module}


def upward(module: str, imported: set[str]) -> set[str]:
    """Those of the imported modules that the module's layer may not import."""
    here = layer(module)
    allowed = GROUND if here in GROUND else GROUND | ALLOWED[here] | {here}
    return {name for name in imported if layer(name) not in allowed}


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m)])
def test_imports_go_one_way(module: str) -> None:
    assert upward(module, ours(module)) == set(), f"{module} may not import these"


def test_an_upward_import_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "layer.py"
    file.write_text("def f():\n    from gradina.apps import cli\nimport_module('gradina.pipeline')\n")
    names = set(imports(file))
    assert {"gradina.apps.cli", "gradina.pipeline"} <= names
    assert upward("gradina.nn.ops", {"gradina.apps.cli", "gradina.kernels.gemm"}) == {"gradina.apps.cli"}


def test_only_ops_and_runtime_see_the_kernels() -> None:
    seen = {m for m in MODULES for name in ours(m) if layer(name) == "kernels" and layer(m) != "kernels"}
    assert {m for m in seen if layer(m) != "runtime"} == {"gradina.nn.ops"}


def test_no_imports_in_a_circle() -> None:
    graph = {module: ours(module) for module in MODULES if module != "gradina"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_layer_has_its_place() -> None:
    assert {layer(m) for m in MODULES} - {""} <= GROUND | set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_the_references_are_no_dependencies(module: str) -> None:
    """Extras and benchmarks load them by import_module, with a message where they are missing."""
    statements = list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    names = {a.name for node in statements if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in statements if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} & REFERENCES == set()
