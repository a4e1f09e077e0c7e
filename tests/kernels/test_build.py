"""The kernels are compiled once, as the CPU needs them; and without them PyTorch computes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gradina.kernels import build
from gradina.kernels.bindings import AttentionKernel, GEGLUKernel, native
from gradina.kernels.build import AMX, BF16, BUILDS, COMMON, build_for
from gradina.kernels.dispatch import kernels_for
from gradina.nn.ops import attention


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    kernels_for.cache_clear()
    build.library.cache_clear()


def test_each_build_has_its_flags() -> None:
    assert [each.flags for each in BUILDS] == [AMX, BF16, COMMON, COMMON]
    assert [each.dtype for each in BUILDS] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [("avx2", [None, None]), ("avx512f", [None, 3]), ("avx512f avx512_bf16", [1, 3]),
     ("avx512f avx512_bf16 amx_bf16", [0, 2])],
)  # fmt: skip
def test_the_cpu_decides_the_build(flags: str, chosen: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cpu_features", lambda: frozenset(flags.split()))
    rows = [None if row is None else BUILDS[row] for row in chosen]
    assert [build_for(torch.bfloat16), build_for(torch.float32)] == rows
    assert build_for(torch.float16) is None


def test_the_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native(AttentionKernel, torch.float32) is None:
        pytest.skip("needs a C compiler and a CPU with AVX-512")
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    forget()
    assert native(AttentionKernel, torch.float32) is not None
    assert [p.suffix for p in (tmp_path / "native").iterdir()] == [".so"]
    forget()
    monkeypatch.setattr(subprocess, "run", None)
    assert native(AttentionKernel, torch.float32) is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_pytorch_computes(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    assert native(AttentionKernel, torch.float32) is None
    assert not list(tmp_path.rglob("*.so"))
    q, k, v = torch.randn(3, 1, 1, 1024, 40)
    with torch.no_grad():
        assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_kernels_can_be_switched_off_and_have_two_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native(AttentionKernel, torch.float16) is None
    monkeypatch.setenv("GRADINA_NATIVE", "0")
    assert native(AttentionKernel, torch.float32) is None
    assert native(GEGLUKernel, torch.bfloat16) is None
