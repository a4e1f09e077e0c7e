"""What the machine itself can do, or a device in it: the limit that every figure is a share of."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn import functional as F

from gradina.runtime.device import DTYPES

PACKAGES = ("gradina", "diffusers", "transformers", "openvino")
SIDE = 2048  # of the matrices
ROUNDS = 5
MORE = 4  # times as large they are where a product of the others would be done before it is asked for


def settled(device: str) -> None:
    """Waits until a device has done what it was told to; a CPU has."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


@torch.inference_mode()
def peaks(device: str = "cpu") -> dict[str, dict[str, float]]:
    """GFLOP/s of a matrix product and of a 3x3 convolution as in Stable Diffusion, the best of some; by number type."""
    found, last = {}, torch.channels_last
    side, batch = (SIDE, 2) if device == "cpu" else (MORE * SIDE, MORE**3 * 2)
    for name in kinds(device):
        dtype = DTYPES[name]
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        x = torch.randn(batch, 320, 64, 64, device=device).to(dtype, memory_format=last)
        w = torch.randn(320, 320, 3, 3, device=device).to(dtype, memory_format=last)
        found[name] = {
            "matrix product": _best(partial(torch.matmul, a, b), 2 * side**3, device),
            "convolution": _best(partial(F.conv2d, x, w, padding=1), 2 * batch * 64 * 64 * 320 * 320 * 9, device),
        }
    return found


def _best(run: Callable[[], object], flops: int, device: str) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        settled(device)
        start = time.perf_counter()
        run()
        settled(device)
        times.append(time.perf_counter() - start)
    return flops / min(times) / 1e9


def kinds(device: str) -> tuple[str, str]:
    """The types of numbers that are compared there."""
    return ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16")


def about(device: str = "cpu") -> dict[str, str | int]:
    """The processor, the threads, the device, and the versions that a figure depends on."""
    named = {} if device == "cpu" else {"device": _named(device)}
    return {
        "processor": _processor(),
        **named,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **_versions(),
    }


def _versions() -> dict[str, str]:
    """Of ourselves and of the peers that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _named(device: str) -> str:
    there = torch.device(device)
    return torch.cuda.get_device_name(there) if there.type == "cuda" else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{known.get('model name', platform.machine())}, family {known.get('cpu family', '?')}"
