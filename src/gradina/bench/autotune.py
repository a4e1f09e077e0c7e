"""Searches for settings that are worth their seconds, by measuring with a model on this machine.

With very many steps all samplers converge to one picture; settings are judged by their PSNR to it, and their time.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gradina.errors import GradinaError, RequestError
from gradina.files import atomic_write, cache_folder
from gradina.images.tensor import to_pixels
from gradina.pipeline.generate import generate, steps
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.resolve import resolve
from gradina.request import Request
from gradina.request_checks import check_choice
from gradina.tasks.metrics import psnr

Settings = Mapping[str, Any]  # fields of a Request
Clock = Callable[[], float]

SAMPLERS = ("dpmpp_2m", "unipc", "euler", "ddim", "heun", "pndm", "lms")  # the deterministic ones
SHORTCUTS: tuple[Settings, ...] = (
    {"reuse": 2},
    {"reuse": 3},
    {"guidance_interval": (0.3, 6.0)},
    {"guidance_interval": (0.3, 6.0), "reuse": 2},
)
SURVEY_STEPS, STEP_LADDER = 10, (20, 6, 14, 4, 28, 8, 40)  # steps: of all settings, then of the best three
REFERENCE: Settings = {"sampler": "dpmpp_2m", "schedule": "trailing", "steps": 100}  # close to convergence
PRESET_PSNR = {"fast": 20.0, "balanced": 27.0, "best": 35.0}  # dB: similar; nearly the same; the same to the eye


@dataclass(frozen=True)
class Trial:
    """Settings that were tried: seconds for a picture, and its PSNR in dB to the picture of very many steps."""

    settings: Settings
    seconds: float
    psnr: float


def tune(model: StableDiffusion, request: Request, seconds: float, clock: Clock = time.perf_counter) -> Iterator[Trial]:
    """Tries settings for a request's prompts, promising ones first. Raises GradinaError if the seconds are too few."""
    start = clock()
    request = resolve(model, request).request
    requests = [request.alone(i) for i in range(len(request.prompts))]
    step = _seconds_per_step(model, requests[0], clock)
    reference_seconds = step * REFERENCE["steps"]
    requests = requests[: max(1, int(seconds / 4 / reference_seconds))]
    if reference_seconds > seconds / 2:
        raise GradinaError(
            f"a step takes {step:.2g} s here, so the picture to compare with takes {reference_seconds / 60:.1f} "
            f"minutes; give at least {math.ceil(2 * reference_seconds / 60)} minutes"
        )
    references = [(one, _draw(model, one, REFERENCE)) for one in requests]
    trials: list[Trial] = []
    for settings in _candidates(model, request, trials):
        calls = settings["steps"] * (2 if settings["sampler"] == "heun" else 1)
        if clock() - start + calls * step * len(requests) <= seconds:
            trials.append(_run_trial(model, references, settings, clock))
            yield trials[-1]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: trials than which none is both faster and closer, the fastest first."""
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.seconds, -t.psnr)):
        if not best or trial.psnr > best[-1].psnr:
            best.append(trial)
    return best


def presets(trials: Sequence[Trial]) -> dict[str, Trial]:
    """For each level the fastest trial that reaches its PSNR, or else the closest of all."""
    pareto = front(trials)
    return {
        name: next((t for t in pareto if t.psnr >= level), pareto[-1]) for name, level in PRESET_PSNR.items() if pareto
    }


def save_trials(model: StableDiffusion, trials: Sequence[Trial]) -> Path:
    """Writes the trials to the cache file that `preset` reads; returns its path."""
    path = _cache_file(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": model.about, "date": date.today().isoformat(), "threads": torch.get_num_threads()}
    with atomic_write(path) as file:
        file.write(json.dumps({**about, "trials": [asdict(t) for t in trials]}, indent=1).encode())
    return path


def preset(model: StableDiffusion, name: str) -> Settings:
    """The settings of fast, balanced, best, or the closest within "1.5s". Raises RequestError where there are none."""
    path = _cache_file(model)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["trials"]
        trials = [Trial(t["settings"], t["seconds"], t["psnr"] if "psnr" in t else t["likeness"]) for t in rows]
    except (OSError, ValueError, TypeError, KeyError):
        trials = []
    if not trials:
        raise RequestError(f"preset: {name}: nothing has been measured for this model here; run `gradina tune` first")
    try:
        limit = float(name.removesuffix("s"))
    except ValueError:
        return presets(trials)[check_choice("preset", name, (*PRESET_PSNR, "1.5s"))].settings
    within = [t for t in front(trials) if t.seconds <= limit]
    if not within:
        raise RequestError(f"preset: {name}: the quickest that was found takes {front(trials)[0].seconds:.2g} s")
    return within[-1].settings


def _cache_file(model: StableDiffusion) -> Path:
    dtype = str(model.dtype).removeprefix("torch.")
    return cache_folder() / "tuned" / f"{model.hash or model.name}-{dtype}-{model.device.type}.json"


def _candidates(model: StableDiffusion, request: Request, trials: Sequence[Trial]) -> Iterator[Settings]:
    """Settings to try next, given the trials so far; `trials` grows between them."""
    for schedule in dict.fromkeys((request.schedule, "karras", "trailing")):
        for sampler in SAMPLERS:
            yield {"sampler": sampler, "schedule": schedule, "steps": SURVEY_STEPS}
    survey = sorted(front(trials), key=lambda t: -t.psnr)
    survey += sorted((t for t in trials if t not in survey), key=lambda t: -t.psnr)
    for count in STEP_LADDER:
        for trial in survey[:3]:
            yield {**trial.settings, "steps": count}
    as_one = model.engine in ("compile", "openvino")  # the engine runs the U-Net as one
    for shortcut in (s for s in SHORTCUTS if not (as_one and "reuse" in s)):
        for trial in front([t for t in trials if set(t.settings) == {"sampler", "schedule", "steps"}]):
            yield {**trial.settings, **shortcut}


def _run_trial(
    model: StableDiffusion, references: Sequence[tuple[Request, torch.Tensor]], settings: Settings, clock: Clock
) -> Trial:
    taken, similarity = [], []
    for request, reference in references:
        start = clock()
        pixels = _draw(model, request, settings)
        taken.append(clock() - start)
        similarity.append(min(99.0, psnr(pixels, reference, 2)))
    return Trial(settings, statistics.median(taken), statistics.fmean(similarity))


def _seconds_per_step(model: StableDiffusion, request: Request, clock: Clock) -> float:
    run = steps(model, replace(request, steps=3))
    next(run)  # includes what is prepared once
    start = clock()
    for _ in run:
        pass
    return (clock() - start) / 2


def _draw(model: StableDiffusion, request: Request, settings: Settings) -> torch.Tensor:
    (picture,) = generate(model, replace(request, **settings))
    return to_pixels(picture.image)
