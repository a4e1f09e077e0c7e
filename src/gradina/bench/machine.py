"""What the machine itself can do: the limit that every figure is a share of."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from gradina.runtime import DTYPES

SIDE = 2048  # of the matrices
ROUNDS = 5


@torch.inference_mode()
def peaks() -> dict[str, dict[str, float]]:
    """GFLOP/s of a matrix product and of a 3x3 convolution as in Stable Diffusion, the best of some; by number type."""
    found = {}
    for name in ("fp32", "bf16"):
        dtype = DTYPES[name]
        a, b = torch.randn(2, SIDE, SIDE).to(dtype)
        x = torch.randn(2, 320, 64, 64).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(320, 320, 3, 3).to(dtype, memory_format=torch.channels_last)
        found[name] = {
            "matrix product": _best(partial(torch.matmul, a, b), 2 * SIDE**3),
            "convolution": _best(partial(F.conv2d, x, w, padding=1), 2 * 2 * 64 * 64 * 320 * 320 * 9),
        }
    return found


def _best(run: Callable[[], object], flops: int) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return flops / min(times) / 1e9


def about() -> dict[str, str | int]:
    """The processor, the threads, and the versions that a figure depends on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{known.get('model name', platform.machine())}, family {known.get('cpu family', '?')}"
