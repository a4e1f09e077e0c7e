"""Denormals are flushed and come back."""

from __future__ import annotations

import pytest
import torch

from gradina.kernels.bindings import DenormalsKernel, native
from gradina.runtime.memory import flush_denormals


def test_denormals_are_flushed_meanwhile() -> None:
    if native(DenormalsKernel, torch.float32) is None:
        pytest.skip("needs the kernels")
    small = torch.full((2**21,), 1e-39)  # enough for all threads
    with flush_denormals():
        assert not (small * 1).any()
        with pytest.raises(ValueError, match="lost"), flush_denormals():
            raise ValueError("lost")
        assert not (small * 1).any(), "as it was before"
    assert (small * 1).all()
