"""The programs whose texts are read, in the order in which they are looked for."""

from __future__ import annotations

from collections.abc import Mapping

from gradina.images.programs import comfyui, drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
from gradina.images.programs.settings import Told

# As `source` of a record     reads its texts
PROGRAMS = (
    ("invokeai",              invokeai.read),
    ("swarmui",               swarmui.read),
    ("fooocus",               fooocus.read),
    ("novelai",               novelai.read),
    ("easydiffusion",         easydiffusion.read),
    ("drawthings",            drawthings.read),
)  # fmt: skip


def before_a1111(found: Mapping[str, str]) -> tuple[str, Told | str] | None:
    """What a program wrote whose marks are its own, by the name of the program; A1111's text where it wrote that."""
    for name, read in PROGRAMS:
        if (told := read(found)) is not None:
            return name, told
    return None


def after_a1111(found: Mapping[str, str]) -> tuple[str, Told] | None:
    """ComfyUI's graph, which some of its nodes write beside the A1111 text, and in more words."""
    told = comfyui.read(found)
    return None if told is None else ("comfyui", told)
