"""The device, dtype and engine that a model computes on."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, cast, get_args

import torch

from gradina.errors import MissingExtra, RequestError
from gradina.request_checks import check_choice

Engine = Literal["auto", "eager", "compile", "openvino"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name, or the fastest one here. Raises RequestError if it is not available."""
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
    """The dtype of that name (fp32, bf16, fp16), or of $GRADINA_DTYPE, or the fastest for pictures.

    That is fp16, but on a CPU bf16 if it multiplies in it, else fp32.
    """
    if name is None:
        name = os.environ.get("GRADINA_DTYPE") or None
    if name is None:
        return torch.float16 if device.type != "cpu" else torch.bfloat16 if multiplies_bf16() else torch.float32
    if isinstance(name, torch.dtype) and name.is_floating_point:
        return name
    return DTYPES[check_choice("dtype", str(name), tuple(DTYPES))]


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX512_BF16 or AMX); one that does not takes up to 70 times as long."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)


def pick_engine(name: str, device: torch.device) -> Engine:
    """The engine of that name. Raises RequestError if the device has none such, MissingExtra if it is not installed."""
    engine = cast(Engine, check_choice("engine", name, get_args(Engine)))
    if engine == "openvino":
        if device.type != "cpu":
            raise RequestError(f"engine: openvino computes on the CPU, not on {device}; give device cpu")
        if not find_spec("openvino"):
            raise MissingExtra("the engine openvino is an extra; install it with: pip install 'gradina[openvino]'")
    return engine


def use_threads(count: int | None) -> None:
    """Sets the number of threads. Raises RequestError if they are many more than there are cores."""
    most = 8 * (os.cpu_count() or 1)
    if count is not None:
        if not 1 <= count <= most:
            raise RequestError(
                f"threads: got {count}, expected 1 to {most}; more than there are cores only slow it down"
            )
        torch.set_num_threads(count)
