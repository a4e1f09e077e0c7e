"""The programs whose texts are read, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Mapping

from gradina.images.programs import comfyui, drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
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


def read_comfyui(texts: Mapping[str, str]) -> tuple[str, ProgramSettings] | None:
    """ComfyUI's settings, tried after the A1111 text, which some of its nodes write in addition."""
    settings = comfyui.read(texts)
    return None if settings is None else ("comfyui", settings)
