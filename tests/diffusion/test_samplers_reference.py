"""Every sampler beside its diffusers scheduler, over whole runs: the same network, the same noise, the same latents."""

from __future__ import annotations

import importlib
import itertools
import sys
import types
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from gradina.diffusion.denoiser import Denoiser, noised
from gradina.diffusion.noise import Noise
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.samplers import SAMPLERS
from gradina.diffusion.schedule import Schedule, img2img_sigmas, sampling_sigmas, sd_schedule
from gradina.diffusion.step import Step
from gradina.request import SAMPLER_NAMES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, numpy 2

SEED, SHAPE, TOLERANCE = 1024, (4, 8, 8), 1e-3
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
VP = {"ddpm", "ddim", "pndm", "dpmpp_2m", "dpmpp_2m_sde", "unipc"}  # whose scheduler keeps variance-preserving latents
TWICE = {"heun", "dpmpp_sde"}  # whose scheduler counts each guess as a step
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def scheduler_of(name: str, schedule: str, prediction: str, **config: Any) -> Any:
    cls, own = SCHEDULERS[name]
    spacing = {"timestep_spacing": schedule}
    if schedule in ("karras", "exponential", "beta"):
        spacing = {f"use_{schedule}_sigmas": True, "timestep_spacing": "linspace"}
    made = getattr(diffusers, cls) if cls != "DPMSolverSDEScheduler" else sde_scheduler()
    return made(**BETAS, **own, **spacing, prediction_type=PREDICTIONS[prediction].diffusers, **config)


def sde_scheduler() -> Any:
    """DPMSolverSDEScheduler without torchsde: the noise is handed in, so an empty module stands for it."""
    if importlib.util.find_spec("torchsde") is None:
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    finally:
        if sys.modules["torchsde"].__spec__ is None:
            del sys.modules["torchsde"]


class Recorded(Noise):
    """Our noise, keeping its Brownian increments: a path is so rough that single precision must not ask for them."""

    def __init__(self) -> None:
        super().__init__([SEED], SHAPE)
        self.increments: list[Tensor] = []

    def brownian(self, a: float | Tensor, b: float | Tensor) -> Tensor:
        self.increments.append(super().brownian(a, b))
        return self.increments[-1]


def theirs(
    name: str, scheduler: Any, network: Any, steps: int, eta: float | None = None, increments: Any = ()
) -> list[Tensor]:
    """The latents after each step, in variance-preserving units, as the diffusers pipeline makes them."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    scheduler.set_timesteps(steps)
    x = torch.randn((1, *SHAPE), generator=generator) * scheduler.init_noise_sigma
    kwargs: dict[str, Any] = {} if name not in ("ddpm", "ddim", "euler_ancestral", "dpmpp_2m_sde") else {
        "generator": generator}  # fmt: skip
    if name == "dpmpp_sde":
        fed = iter(increments)
        scheduler.noise_sampler = lambda a, b: next(fed)
    states = []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t).float(), t[None].float())
        x = scheduler.step(output, t, x, **kwargs, **({"eta": eta} if eta is not None else {})).prev_sample.float()
        states.append(x)
    if name in TWICE:
        states = [*states[1::2], states[-1]]
    if name == "pndm":
        states = states[1:]
    if name not in VP:
        sigmas = [*scheduler.sigmas[2::2], scheduler.sigmas[-1]] if name in TWICE else scheduler.sigmas[1:]
        states = [x / (s**2 + 1) ** 0.5 for x, s in zip(states, sigmas, strict=name not in TWICE)]
    return states


def ours(
    name: str,
    schedule: str,
    prediction: str,
    network: Any,
    steps: int,
    model: Schedule | None = None,
    noise: Noise | None = None,
    **options: Any,
) -> list[Step]:
    model, row, noise = model or sd_schedule(), SAMPLERS[name], noise or Noise([SEED], SHAPE)
    denoiser = Denoiser(network, model, PREDICTIONS[prediction], row.whole_t)
    sigmas = sampling_sigmas(model, schedule, steps, row.final, row.whole_t)
    x = noise() * row.init_noise_sigma(schedule, float(sigmas[0]))
    if "prediction" in row.options:
        options["prediction"] = PREDICTIONS[prediction]
    return list(row.run(lambda x, sigma: denoiser(x, sigma, None), x, sigmas, noise, **options))


def furthest(ours: list[Step], theirs: list[Tensor]) -> float:
    """The largest difference of latents anywhere in the run, in variance-preserving units."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((step.x / (step.sigma**2 + 1) ** 0.5 - x).abs().max()) for step, x in pairs)


CASES = [
    *((name, "leading") for name in SCHEDULERS),
    *((name, "linspace") for name in SCHEDULERS if name not in ("ddim", "pndm")),  # theirs skip between other levels
    *((name, "trailing") for name in SCHEDULERS),
    *((name, "karras") for name in ("lms", "euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc")),
    *((name, schedule) for name in ("euler", "heun") for schedule in ("exponential", "beta")),
]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_runs_equal_those_of_diffusers(name: str, schedule: str, prediction: str, network: Any) -> None:
    for steps in (10, 20, 50):
        noise = Recorded()
        run = ours(name, schedule, prediction, network, steps, noise=noise)
        scheduler = scheduler_of(name, schedule, prediction)
        reference = theirs(name, scheduler, network, steps, increments=noise.increments)
        assert furthest(run, reference) <= TOLERANCE, steps


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_eta_equals_diffusers(eta: float, prediction: str, network: Any) -> None:
    for steps in (10, 20, 50):
        scheduler = scheduler_of("ddim", "leading", prediction)
        reference = theirs("ddim", scheduler, network, steps, eta)
        assert furthest(ours("ddim", "leading", prediction, network, steps, eta=eta), reference) <= TOLERANCE


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "unipc"])
def test_a_network_that_predicts_x0(name: str, network: Any) -> None:
    reference = theirs(name, scheduler_of(name, "leading", "x0"), network, 20)
    assert furthest(ours(name, "leading", "x0", network, 20), reference) <= TOLERANCE


@pytest.mark.parametrize(("name", "tolerance"), [("ddim", 2e-3), ("euler", 1e-3), ("dpmpp_2m", 1e-3), ("unipc", 1e-3)])
def test_zero_terminal_snr(name: str, tolerance: float, network: Any) -> None:
    """Ours walk from alphas_bar = 2**-24, that is sigma 4096, as theirs do except ddim, which walks from 0."""
    model = sd_schedule(rescale_betas_zero_snr=True)
    for steps in (10, 20, 50):
        scheduler = scheduler_of(name, "trailing", "v", rescale_betas_zero_snr=True)
        reference = theirs(name, scheduler, network, steps)
        assert furthest(ours(name, "trailing", "v", network, steps, model), reference) <= tolerance


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "unipc"])
def test_img2img_equals_diffusers(name: str, prediction: str, network: Any) -> None:
    """The end of a run, as StableDiffusionImg2ImgPipeline has it: cut by strength, from the picture with noise."""
    z, n = torch.randn((2, 1, *SHAPE), generator=torch.Generator().manual_seed(SEED)).unbind()
    model, row = sd_schedule(), SAMPLERS[name]
    denoiser = Denoiser(network, model, PREDICTIONS[prediction], row.whole_t)
    for steps, strength in itertools.product((10, 20, 50), (0.3, 0.8)):
        scheduler = scheduler_of(name, "leading", prediction)
        scheduler.set_timesteps(steps)
        begin = (steps - min(int(steps * strength), steps)) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = scheduler.add_noise(z, n, scheduler.timesteps[begin : begin + 1])
        for t in scheduler.timesteps[begin:]:
            output = network(scheduler.scale_model_input(x, t).float(), t[None].float())
            x = scheduler.step(output, t, x).prev_sample.float()

        sigmas = img2img_sigmas(sampling_sigmas(model, "leading", steps, row.final, row.whole_t), strength)
        *_, last = row.run(lambda x, s: denoiser(x, s, None), noised(z, n, sigmas[0]), sigmas, Noise([SEED], SHAPE))
        torch.testing.assert_close(last.x / (last.sigma**2 + 1) ** 0.5, x, rtol=0, atol=TOLERANCE)


def test_the_table_has_the_names_that_requests_know() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    assert set(SCHEDULERS) == set(SAMPLER_NAMES) - {"sgd", "momentum", "nesterov", "adam"}  # see test_descent.py


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_steps_are_numbered_and_end_at_the_last_sigma(name: str, network: Any) -> None:
    for steps in (1, 2, 7):
        run = ours(name, SAMPLERS[name].schedule, "eps", network, steps)
        assert [step.i for step in run] == list(range(steps))
        last = float(sd_schedule().sigmas[0]) if SAMPLERS[name].final == "lowest" else 0.0
        assert run[-1].sigma == last
        assert all(torch.isfinite(step.x).all() and step.x.dtype == torch.float32 for step in run)
