"""The programs whose texts are tried before A1111's, in this order; ComfyUI comes after it."""

from __future__ import annotations

from collections.abc import Mapping

from gradina.images.programs import drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
from gradina.images.programs.settings import ProgramSettings

# The source of a Record       reads its texts
PROGRAMS = (
    ("invokeai",              invokeai.read),
    ("swarmui",               swarmui.read),
    ("fooocus",               fooocus.read),
    ("novelai",               novelai.read),
    ("easydiffusion",         easydiffusion.read),
    ("drawthings",            drawthings.read),
)  # fmt: skip


def read_programs(texts: Mapping[str, str]) -> tuple[str, ProgramSettings | str] | None:
    """The program whose texts these are, with its settings, or the A1111 text that it wrote."""
    for name, read in PROGRAMS:
        if (settings := read(texts)) is not None:
            return name, settings
    return None
