"""Figures on their way into what people read: a section of a model's card or of a page."""

from __future__ import annotations

from pathlib import Path


def put_section(path: Path, heading: str, text: str, before: str) -> None:
    """Puts a section of Markdown in the place of an earlier one with its heading, or in front of `before`."""
    head, found, rest = path.read_text(encoding="utf-8").partition(f"{heading}\n")
    if found:
        after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    else:
        head, found, rest = head.partition(f"{before}\n")
        after = found + rest
    path.write_text(f"{head}{heading}\n\n{text.strip()}\n\n{after}".rstrip() + "\n", encoding="utf-8")
