"""Devices and number types by name, and what is said where there is no such thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradina.errors import RequestError
from gradina.runtime import device
from gradina.runtime.device import multiplies_bf16, pick_device, pick_dtype

CPU = torch.device("cpu")


def test_devices() -> None:
    assert pick_device("cpu") == pick_device(CPU) == CPU
    fastest = torch.accelerator.current_accelerator(check_available=True)
    assert pick_device() == (fastest or CPU)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "mps:7", "xpu", "cpu:x", "meta", "toaster"])
def test_unavailable_devices_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"^device: .*{name}.*cpu") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_dtypes() -> None:
    assert [pick_dtype(n, CPU) for n in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
    assert pick_dtype(torch.bfloat16, CPU) == torch.bfloat16


def test_the_default_dtype_is_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADINA_DTYPE")
    assert pick_dtype(None, torch.device("cuda")) == torch.float16
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "multiplies_bf16", lambda has=has: has)
        assert pick_dtype(None, CPU) == expected
    assert isinstance(multiplies_bf16(), bool)
    monkeypatch.setenv("GRADINA_DTYPE", "fp16")
    assert pick_dtype(None, CPU) == torch.float16
    assert pick_dtype("fp32", CPU) == torch.float32
    monkeypatch.setenv("GRADINA_DTYPE", "fp8")
    with pytest.raises(RequestError, match=r"^dtype: .*choices: fp32, bf16, fp16"):
        pick_dtype(None, CPU)


@pytest.mark.parametrize("dtype", ["fp8", "float", "", "bf-16", torch.int8, torch.bool])
def test_unknown_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(RequestError, match=r"^dtype: .*choices: fp32, bf16, fp16"):
        pick_dtype(dtype, CPU)


def test_a_near_name_is_guessed() -> None:
    with pytest.raises(RequestError, match="did you mean 'fp16'"):
        pick_dtype("f16", CPU)
