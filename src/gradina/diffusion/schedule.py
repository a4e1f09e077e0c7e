"""Noise levels: betas <-> sigmas <-> time steps, and the falling levels of a sampler's run.

Time steps exist only where a network was trained with them, and are converted here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradina.diffusion.betas import BetaLaw
from gradina.errors import RequestError, WeightsError
from gradina.request_checks import check_choice

Final = Literal["zero", "replace", "lowest"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels that a network was trained at: sigma_t = sqrt((1 - alphas_bar_t) / alphas_bar_t)."""

    sigmas: Tensor  # (T,) float64, rising
    steps_offset: int = 1  # time steps by which the leading levels are moved up
    set_alpha_to_one: bool = False  # whether ddim and pndm end at sigma 0 instead of sigmas[0]
    timestep_spacing: str = "leading"  # how the model's authors sampled: leading, linspace or trailing
    law: BetaLaw | None = None  # how the betas were made, if it has a name

    @classmethod
    def from_betas(cls, betas: Tensor, **fields: Any) -> Schedule:
        """The schedule of these betas (T,); an infinite last sigma becomes 4096 (diffusers: alphas_bar 2**-24).

        Raises WeightsError for fewer than two, or for one that is not above 0 and below 1 (the last may be 1).
        """
        betas = betas.double()
        inside = betas.ndim == 1 and len(betas) > 1 and bool(((betas > 0) & (betas < 1))[:-1].all())
        if not inside or not 0 < betas[-1] <= 1:
            raise WeightsError("betas: expected a list of at least two, above 0 and below 1 (the last may be 1)")
        alphas_bar = (1 - betas).cumprod(0)
        if alphas_bar[-1] <= 0:
            alphas_bar[-1] = 2**-24
        return cls(sigmas=((1 - alphas_bar) / alphas_bar).sqrt(), **fields)

    @property
    def alphas_bar(self) -> Tensor:
        """The cumulative products of the alphas, 1 / (1 + sigma^2), (T,)."""
        return 1 / (1 + self.sigmas**2)

    def t_of(self, sigma: Tensor) -> Tensor:
        """The time step, a float64 of sigma's shape, at noise level sigma: linear in log sigma between the trained
        levels, whole at them, clamped to 0 .. T - 1 (diffusers' `_sigma_to_t`)."""
        log_sigmas = self.sigmas.log()
        log_sigma = sigma.detach().to("cpu", torch.float64).clamp(min=1e-10).log()
        low = (torch.searchsorted(log_sigmas, log_sigma, right=True) - 1).clamp(0, len(log_sigmas) - 2)
        w = (log_sigma - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
        return low + w.clamp(0, 1)

    def sigma_of(self, t: Tensor) -> Tensor:
        """The noise level, a float64 of t's shape, at time step t: linear in sigma between the trained levels, as
        diffusers' schedulers have it, and clamped to 0 .. T - 1."""
        t = t.detach().to("cpu", torch.float64).clamp(0, len(self.sigmas) - 1)
        low = t.floor().long().clamp(max=len(self.sigmas) - 2)
        return torch.lerp(self.sigmas[low], self.sigmas[low + 1], t - low)


def sd_schedule(**fields: Any) -> Schedule:
    """The schedule of Stable Diffusion 1.x and 2.x; `fields` are those of BetaLaw that differ."""
    law = BetaLaw(**fields)
    return Schedule.from_betas(law.betas(), law=law)


# --- the levels of a run ---
# A spacing gives n falling levels of a schedule, without the end; `whole` rounds time steps.

Spacing = Callable[[Schedule, int, bool], Tensor]


def _at(schedule: Schedule, t: Tensor, whole: bool) -> Tensor:
    return schedule.sigma_of(t.round() if whole else t)


def _even(high: float, low: float, n: int) -> Tensor:
    return torch.linspace(high, low, n, dtype=torch.float64)


def leading(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Every (T // n)-th time step from `steps_offset` up (Lin et al. 2305.08891, table 2)."""
    every = len(schedule.sigmas) // n
    offset = min(schedule.steps_offset, len(schedule.sigmas) - 1 - (n - 1) * every)
    return _at(schedule, torch.arange(n - 1, -1, -1) * every + offset, whole)


def linspace(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Time steps spread evenly from the last to the first (Lin et al. 2305.08891, table 2)."""
    return _at(schedule, _even(len(schedule.sigmas) - 1, 0, n), whole)


def trailing(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Every (T / n)-th time step from the last down (Lin et al. 2305.08891, table 2)."""
    every = len(schedule.sigmas) / n
    return schedule.sigma_of((len(schedule.sigmas) - torch.arange(n, dtype=torch.float64) * every).round() - 1)


def sgm_uniform(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Time steps spread evenly over n intervals, the last one ending at the first time step (Stability's sgm)."""
    return linspace(schedule, n + 1, whole)[:-1]


def karras(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Levels whose 7th roots fall evenly from the highest to the lowest (Karras et al. 2206.00364, eq. 5)."""
    return _even(float(schedule.sigmas[-1]) ** (1 / 7), float(schedule.sigmas[0]) ** (1 / 7), n) ** 7


def exponential(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Levels whose logarithms fall evenly from the highest to the lowest (k-diffusion)."""
    return _even(math.log(schedule.sigmas[-1]), math.log(schedule.sigmas[0]), n).exp()


def beta(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """Levels at the quantiles of Beta(0.6, 0.6) between the highest and the lowest (Lee et al. 2407.12173)."""
    low, high = schedule.sigmas[0], schedule.sigmas[-1]
    return low + beta_quantile(_even(1, 0, n)) * (high - low)


def beta_quantile(p: Tensor, a: float = 0.6) -> Tensor:
    """The quantile at p (n,) of the symmetric beta distribution Beta(a, a): bisection on its power series.

    B(x; a, a) = x^a * sum_k (1 - a)_k / (k! (a + k)) * x^k, for x <= 1/2; the other half is its mirror image.
    """
    low, high = torch.zeros_like(p), torch.full_like(p, 0.5)
    terms = p.new_tensor([math.gamma(1 - a + k) / math.gamma(1 - a) / math.factorial(k) / (a + k) for k in range(60)])
    whole = math.gamma(a) ** 2 / math.gamma(2 * a)
    for _ in range(64):
        x = (low + high) / 2
        below = x**a * (terms * x[:, None] ** torch.arange(60)).sum(1) < torch.minimum(p, 1 - p) * whole
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return torch.where(p <= 0.5, high * (p > 0), 1 - high * (p < 1))


AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def ays(schedule: Schedule, n: int, whole: bool) -> Tensor:
    """The ten levels found best for Stable Diffusion 1, log-linear between them for other counts (Sabour et al.
    2404.14507, "Align Your Steps"); meant for the betas of Stable Diffusion."""
    table = torch.tensor(AYS, dtype=torch.float64).log()
    place = _even(0, len(AYS) - 1, n + 1)[:-1]
    return torch.lerp(table[place.long()], table[place.long() + 1], place - place.long()).exp()


SCHEDULES: dict[str, Spacing] = {
    "leading": leading, "linspace": linspace, "trailing": trailing, "karras": karras,
    "exponential": exponential, "sgm_uniform": sgm_uniform, "beta": beta, "ays": ays,
}  # fmt: skip


def sampling_sigmas(schedule: Schedule, name: str, steps: int, final: Final = "zero", whole: bool = False) -> Tensor:
    """The falling noise levels (steps + 1,), float64, of a run of `steps` steps; one entry is one step, and the end.

    `final` is how the run ends, a field of the sampler's row: "zero" puts 0 after n spaced levels; "replace" puts 0 in
    place of the lowest of n + 1 (the multistep DPM-Solvers; only the leading and linspace levels differ by it);
    "lowest" puts sigmas[0] after them, unless the schedule sets alpha to one or they have reached it (ddim, pndm).
    `whole` keeps leading and linspace to whole time steps. Equal to what diffusers' schedulers compute where the time
    steps divide evenly. Raises RequestError where there is no such schedule or not so many levels.
    """
    check_choice("schedule", name, tuple(SCHEDULES))
    if not 1 <= steps <= len(schedule.sigmas):
        raise RequestError(f"steps: got {steps}, expected 1 to {len(schedule.sigmas)}, the model's number of levels")
    if final == "replace" and name in ("leading", "linspace"):
        levels = SCHEDULES[name](schedule, steps + 1, whole)[:-1]
    else:
        levels = SCHEDULES[name](schedule, steps, whole)
    lowest = schedule.sigmas[:1]
    stays = final == "lowest" and not schedule.set_alpha_to_one and levels[-1] > lowest
    sigmas = torch.cat([levels, lowest if stays else torch.zeros_like(lowest)])
    if (sigmas.diff() >= 0).any():
        raise RequestError(f"steps: the {name} schedule has no {steps} different levels; take fewer steps")
    return sigmas


def img2img_sigmas(sigmas: Tensor, strength: float) -> Tensor:
    """The end of the levels (n + 1,) that a picture of `strength` 0..1 goes through: int(steps * strength) steps.

    At strength 0 one level is left, which is no step. The count is that of diffusers' `get_timesteps`.
    """
    steps = len(sigmas) - 1
    return sigmas[steps - min(int(steps * strength), steps) :]
