"""Outputs of networks are checked for NaN and infinity, with an error that names the network and what to try."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradina.errors import NumericalError

HALF = (torch.float16, torch.bfloat16)


def finite(x: Tensor, what: str, network: nn.Module, dtype: torch.dtype) -> Tensor:
    """x itself, the output of `what` (a `network` that computes in `dtype`).

    Raises NumericalError for NaN or infinity, with the first parameter that has such a value, or what else may help.
    """
    if bool(torch.isfinite(x).all()):
        return x
    broken = next((name for name, value in network.state_dict().items() if not torch.isfinite(value).all()), None)
    if broken is not None:
        cause = f"its parameter {broken} holds such values; fetch the checkpoint (or LoRA, or word) again, or another"
    elif dtype in HALF:
        cause = f"all its weights are finite, so it overflows in {str(dtype).removeprefix('torch.')}; try dtype fp32"
    else:
        cause = "all its weights are finite; try a lower guidance_scale, or lower scales of LoRAs"
    raise NumericalError(f"{what}: gave {_kind(x)}, which cannot be used; {cause}")


def finite_step(x: Tensor, sampler: str) -> Tensor:
    """The state after a step of a sampler whose denoised pictures are finite. Raises NumericalError where it is not."""
    if bool(torch.isfinite(x).all()):
        return x
    raise NumericalError(
        f"sampler: {sampler} diverged ({_kind(x)}), and no picture is made of that; "
        "take more steps, another schedule, or another sampler"
    )


def _kind(x: Tensor) -> str:
    return "NaN" if bool(torch.isnan(x).any()) else "infinite values"
