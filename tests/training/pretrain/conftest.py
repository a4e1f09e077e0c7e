"""What the tests of recipes share."""

from __future__ import annotations

from pathlib import Path

PHASES = """
[[unet.training]]
pixels = 16
steps = 4
batch = 4
lr = 1e-3

[[unet.training]]
steps = 4
batch = 4
lr = 1e-3
"""


def in_phases(recipe_file: Path) -> None:
    """The U-Net learns at half the size first."""
    head, _, rest = recipe_file.read_text().partition("[unet.training]")
    recipe_file.write_text(head + PHASES + "\n[defaults]" + rest.partition("[defaults]")[2])
