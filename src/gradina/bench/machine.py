"""The peak throughput of the machine or a device in it, and the environment that figures depend on."""

from __future__ import annotations

import platform
import timeit
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn import functional as F

from gradina.runtime.device import DTYPES

PACKAGES = ("gradina", "diffusers", "transformers", "openvino")
SIDE = 2048  # rows and columns of the matrices
ROUNDS = 5
ACCELERATOR_SCALE = 4  # larger there, where the launch would otherwise take longer than the kernel


def synchronize(device: str) -> None:
    """Waits for pending kernels of a device; a CPU has none."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


@torch.inference_mode()
def peaks(device: str = "cpu") -> dict[str, dict[str, float]]:
    """By dtype, the best GFLOP/s of a matrix product and of a 3x3 convolution with the shape of Stable Diffusion's."""
    speeds = {}
    scale = 1 if device == "cpu" else ACCELERATOR_SCALE
    side, batch = scale * SIDE, 2 * scale**3
    for name in dtypes(device):
        dtype = DTYPES[name]
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        x = torch.randn(batch, 320, 64, 64, device=device).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(320, 320, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        speeds[name] = {
            "matrix product": _best(partial(torch.matmul, a, b), 2 * side**3, device),
            "convolution": _best(partial(F.conv2d, x, w, padding=1), 2 * batch * 64 * 64 * 320 * 320 * 9, device),
        }
    return speeds


def _best(run: Callable[[], object], flops: int, device: str) -> float:
    def synchronized() -> None:
        run()
        synchronize(device)

    synchronize(device)
    return flops / min(timeit.repeat(synchronized, repeat=ROUNDS + 1, number=1)) / 1e9


def dtypes(device: str) -> tuple[str, str]:
    """The dtypes that are compared on a device."""
    return ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16")


def environment(device: str = "cpu") -> dict[str, str | int]:
    """Processor, device, threads, and versions of everything that is compared."""
    return {
        "processor": _processor(),
        **({} if device == "cpu" else {"device": _device_name(device)}),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **_versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _device_name(device: str) -> str:
    kind = torch.device(device)
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family', '?')}"
