"""Freed memory returns to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELD = """
import sys, torch
from gradina.kernels.malloc import trim_heap, trim_threshold
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
def maps():
    for _ in range(3):
        both = [(torch.ones(5_000_000), torch.ones(10_000)) for _ in range(10)]
        kept = [small for large, small in both]
        both.clear()
    return kept
torch.ones(100), trim_threshold() if "trim_threshold" in sys.argv else None
first = held()
kept = maps()
trim_heap() if "trim_heap" in sys.argv else None
print(held() - first)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of GNU's C library")
@pytest.mark.parametrize("how", ["trim_threshold", "trim_heap"])
def test_freed_memory_returns_to_the_system(how: str) -> None:
    """Maps of 20 MB come and go, small ones stay."""
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True)
    assert float(done.stdout) < 15, (done.stdout, done.stderr)
