"""The documentation site builds without a warning, has a search, and loads nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradina

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "lessons")
LONGEST_READING = 2300  # lines, from a request to a finished picture
SOURCE = Path(gradina.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    target = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", "."]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, *command, target], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def test_the_site_has_every_page(site: Path) -> None:
    missing = [page for page in PAGES if not (site / page.relative_to(ROOT)).with_suffix(".html").exists()]
    assert missing == []
    assert 'url=docs/index.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_the_search_finds_the_guidance(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert re.search(r'"?guidanc"?:', index)  # the stem
    assert "docs/reference/diffusion" in index


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    loaded = [
        (page.name, tag)
        for page in site.rglob("*.html")
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        if re.search(r"""(?:src|href)=["'](?:https?:)?//""", tag)
    ]
    sheets = [
        sheet.name
        for sheet in site.rglob("*.css")
        if re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", sheet.read_text())
    ]
    assert (loaded, sheets) == ([], [])


def test_docstrings_render_as_they_are_written(site: Path) -> None:
    page = (site / "docs" / "reference" / "diffusion.html").read_text(encoding="utf-8")
    assert 'class="problematic"' not in page
    assert "uncond + scale * (cond - uncond)" in page


def test_the_first_reading_is_as_long_as_stated() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    stated = {name: int(lines) for name, lines in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", text, re.MULTILINE)}
    counted = {name: len((SOURCE / name).read_text(encoding="utf-8").splitlines()) for name in stated}
    assert {name: n for name, n in counted.items() if abs(n - stated[name]) > 0.1 * n + 2} == {}
    assert sum(counted.values()) <= LONGEST_READING
    (total,) = re.findall(r"\*\*([\d,]+) lines\*\*", text)
    assert int(total.replace(",", "")) == sum(stated.values())


def test_modules_named_in_the_pages_exist() -> None:
    """Except in the list of paths that changed, whose left column is the old one."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "migration.md":
            text = "\n".join(re.findall(r"\| (`[^|]*`) \|$", text, re.MULTILINE))
        named = set(re.findall(r"\bgradina(?:\.[a-z_0-9]+)+", text))
        known = {name for name in named if name in MODULES or name.rpartition(".")[0] in MODULES}
        assert sorted(named - known) == [], page
