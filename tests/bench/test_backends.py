"""All backends compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gradina.bench.backends import Opener, accelerator_backends, backends
from gradina.bench.workloads import WORKLOADS, Shapes


def outputs(known: Mapping[str, Opener], folder: Path, shapes: Shapes, workload: str) -> dict[str, torch.Tensor]:
    def tensor(result: Any) -> torch.Tensor:
        return result if isinstance(result, torch.Tensor) else torch.from_numpy(result[0])

    return {name: tensor(opener(folder, shapes, workload)()) for name, opener in known.items()}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_backends_agree(workload: str, folder: Path, tiny: Shapes) -> None:
    found = outputs(backends(), folder, tiny, workload)
    assert len(found) == 6
    expected = found["diffusers fp32"]
    for name, output in found.items():
        tolerance = {"openvino fp32": 5e-3, "gradina fp32": 2e-4}.get(name, 0.25)  # OpenVINO keeps constants in fp16
        assert (output.float() - expected).abs().max() <= tolerance * expected.abs().max(), name


@pytest.mark.parametrize("workload", WORKLOADS)
def test_accelerator_backends_agree(workload: str, folder: Path, tiny: Shapes) -> None:
    """On the CPU, where the compiled ones cannot be tested."""
    eager = {name: opener for name, opener in accelerator_backends("cpu").items() if "compiled" not in name}
    found = outputs(eager, folder, tiny, workload)
    assert set(found) == {"gradina fp32", "gradina fp16", "diffusers fp32", "diffusers fp16"}
    expected = found["diffusers fp32"]
    for name, output in found.items():
        tolerance = 2e-4 if name.endswith("fp32") else 3e-2
        assert (output.float() - expected).abs().max() <= tolerance * expected.abs().max(), name
