"""The public face: few names, imported when first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gradina

NAMES = [
    "GradinaError", "Picture", "Request", "StableDiffusion", "Step", "__version__", "generate", "load", "push", "steps",
]  # fmt: skip


def test_the_names_are_these() -> None:
    assert sorted(gradina.__all__) == NAMES
    assert dir(gradina) == NAMES
    assert len(NAMES) <= 15
    assert all(getattr(gradina, name) is not None for name in NAMES)


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'torch'"):
        _ = gradina.torch


@pytest.mark.parametrize(
    "code",
    [
        "import gradina; gradina.Request(prompt='x'); gradina.GradinaError",
        "import gradina.apps.cli.main",
        "import gradina.images.metadata, gradina.images.open, gradina.images.grid, gradina.files",
        "from gradina.apps.cli.main import main; assert main(['--help']) == 0",
        "from gradina.apps.cli.main import main; assert main(['models']) == 0",
        "from gradina.apps.cli.main import main; assert main(['x', '--sampler', 'none']) == 2",
    ],
)
def test_torch_is_not_imported_where_none_is_needed(code: str) -> None:
    check = f"{code}\nimport sys; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
