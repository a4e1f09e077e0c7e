"""Sections of figures in model cards and documentation pages."""

from __future__ import annotations

from pathlib import Path


def put_section(path: Path, heading: str, text: str, before: str) -> None:
    """Replaces the section with this heading, or inserts it in front of the heading `before`."""
    head, found, rest = path.read_text(encoding="utf-8").partition(f"{heading}\n")
    if found:
        after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    else:
        head, found, rest = head.partition(f"{before}\n")
        after = found + rest
    path.write_text(f"{head}{heading}\n\n{text.strip()}\n\n{after}".rstrip() + "\n", encoding="utf-8")
