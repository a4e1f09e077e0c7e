"""The documentation site: `make docs` builds it from README.md, docs/ and the docstrings, without the network."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

project = "Gradina"
copyright = "The Gradina founders"
root_doc = "docs/index"  # the source folder is the repository, so that links between pages are those of the files
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md"]
exclude_patterns = [".*", "out", "runs", "src", "tests"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
highlight_language = "none"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Gradina"
html_static_path = ["theme"]
html_css_files = ["gradina.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#a8460f", "color-brand-content": "#a8460f"},
    "dark_css_variables": {"color-brand-primary": "#f0965a", "color-brand-content": "#f0965a"},
}

SOURCE = Path(__file__).parents[1] / "src"
HOME = '<!doctype html><title>Gradina</title><meta http-equiv="refresh" content="0; url=docs/index.html">'


def markdown_to_rst(text: str) -> str:
    """A docstring as Sphinx reads it: code spans, indented blocks as literal blocks, no other markup."""
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("    "):
            blocks.append("::\n\n" + block)
            continue
        spans = re.split(r"`([^`]+)`", block)
        spans[::2] = [re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", span) for span in spans[::2]]
        spans[1::2] = [rf"\ ``{span.strip()}``\ " for span in spans[1::2]]
        blocks.append("".join(spans))
    return "\n\n".join(blocks)


def list_modules(app: Any, page: str, source: list[str]) -> None:
    """Writes out each line `::: gradina.package` of a page: a section for each module of the package."""

    def sections(line: re.Match[str]) -> str:
        path = SOURCE / line[1].replace(".", "/")
        modules = [f"{line[1]}.{file.stem}" for file in sorted(path.glob("[!_]*.py"))] if path.is_dir() else [line[1]]
        return "\n".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in modules)

    source[0] = re.sub(r"^::: (\S+)$", sections, source[0], flags=re.MULTILINE)


def field_comments(item: object) -> str:
    """The fields of a dataclass that have a comment, as a list."""
    source = inspect.getsource(item) if inspect.isclass(item) and is_dataclass(item) else ""
    found = re.findall(r"^    (\w+): .*?  # (?!fmt|type)(.+)$", source, re.MULTILINE)
    return "\n\n" + "\n".join(f"- `{name}`: {comment}" for name, comment in found) if found else ""


def process_docstring(app: Any, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    lines[:] = markdown_to_rst("\n".join(lines).rstrip() + field_comments(item)).split("\n")


def write_home(app: Any, exception: Exception | None) -> None:
    if exception is None:
        Path(app.outdir, "index.html").write_text(HOME, encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("build-finished", write_home)
