"""Where and in which numbers a model computes."""

from __future__ import annotations

import os

import torch

from gradina.errors import RequestError
from gradina.request import choice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name, or the fastest one here; RequestError if it is not to be had."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise RequestError(f"device: {name} cannot be used here ({reason}); try cpu") from error
    return device


def pick_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The type of that name (fp32, bf16, fp16), or fp32 on a CPU and fp16 elsewhere."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if isinstance(name, torch.dtype) and name.is_floating_point:
        return name
    return DTYPES[choice("dtype", str(name), tuple(DTYPES))]


def use_threads(count: int | None) -> None:
    """Computes with so many threads from now on; RequestError if they are many more than there are cores."""
    most = 8 * (os.cpu_count() or 1)
    if count is not None:
        if not 1 <= count <= most:
            raise RequestError(
                f"threads: got {count}, expected 1 to {most}; more than there are cores only slow it down"
            )
        torch.set_num_threads(count)
