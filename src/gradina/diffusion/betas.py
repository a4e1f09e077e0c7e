"""The laws by which the variance of each training step was chosen, and their names in scheduler_config.json."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradina.errors import WeightsError


def scaled_linear_betas(n: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Betas (n,) whose roots rise evenly, as Stable Diffusion has them (ldm `make_beta_schedule("linear")`)."""
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2


def linear_betas(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Betas (n,) that rise evenly (Ho et al. 2006.11239, section 4)."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def cosine_betas(n: int = 1000) -> Tensor:
    """Betas (n,) of the squared cosine, none above 0.999 (Nichol & Dhariwal 2102.09672, eq. 17)."""
    alphas_bar = torch.cos((torch.linspace(0, 1, n + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas (n,) with nothing of the picture left at the last one (Lin et al. 2305.08891, algorithm 1)."""
    root = (1 - betas.double()).cumprod(0).sqrt()
    alphas_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "scaled_linear": scaled_linear_betas,
    "linear": linear_betas,
    "squaredcos_cap_v2": lambda n, start, end: cosine_betas(n),
}


@dataclass(frozen=True)
class BetaLaw:
    """How the betas were made, in the words of diffusers' scheduler_config.json."""

    beta_schedule: str = "scaled_linear"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_betas_zero_snr: bool = False

    def betas(self) -> Tensor:
        """The betas (num_train_timesteps,); raises WeightsError where the law has no known name."""
        if self.beta_schedule not in BETAS:
            raise WeightsError(
                f"beta_schedule: got {reprlib.repr(self.beta_schedule)}, expected one of {', '.join(BETAS)}"
            )
        betas = BETAS[self.beta_schedule](self.num_train_timesteps, self.beta_start, self.beta_end)
        return zero_terminal_snr(betas) if self.rescale_betas_zero_snr else betas
