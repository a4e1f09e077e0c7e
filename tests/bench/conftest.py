"""A tiny model for the benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradina.bench.workloads import Shapes, write_model
from gradina.models.clip import TextConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig
from gradina.weights.families import FAMILIES


@pytest.fixture
def tiny() -> Shapes:
    return Shapes(
        replace(
            FAMILIES["sd1"],
            unet=UNetConfig(widths=(32, 64), attention=(True, False), heads=(4, 4), blocks=1, context=32, size=8),
            text=TextConfig(width=32, inner=64, layers=2, heads=2),
            vae=VAEConfig(widths=(32, 32), blocks=1),
        ),
        size=16,
    )


@pytest.fixture
def folder(tiny: Shapes, tmp_path: Path) -> Path:
    """The tiny model, written to disk."""
    write_model(tiny, tmp_path / "model")
    return tmp_path / "model"
