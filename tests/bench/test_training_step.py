"""All backends take the same training step; its operations are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gradina.bench import training_step
from gradina.bench.workloads import Shapes
from gradina.models.unet import UNet


def test_losses_of_all_backends_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three losses agree, and so do the updates before them."""
    monkeypatch.setattr(training_step, "BATCH", 2)
    monkeypatch.setattr(training_step, "SETTINGS", replace(training_step.SETTINGS, lr=1e-2))
    losses = {name: [step() for _ in range(3)] for name, step in training_step.backends(folder).items()}
    assert list(losses) == ["gradina fp32", "diffusers fp32", "gradina bf16", "diffusers bf16"]
    expected = losses["diffusers fp32"]
    assert expected[2] < 0.98 * expected[0]
    assert losses["gradina fp32"] == pytest.approx(expected, rel=2e-3)
    for name in ("gradina bf16", "diffusers bf16"):
        assert losses[name] == pytest.approx(expected, rel=5e-2)


def test_gflop_counts_forward_and_backward(tiny: Shapes) -> None:
    counter = FlopCounterMode(display=False)
    unet, (z, _, t, cond) = UNet(tiny.family.unet), training_step.batch(tiny.family.unet)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the other attention kernels are not counted on a CPU
        unet(z.requires_grad_(), t, cond.requires_grad_()).sum().backward()
    assert training_step.gflop(tiny.family.unet) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)
