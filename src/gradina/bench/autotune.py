"""Which settings are worth their seconds: measured with this model, on this machine, instead of guessed.

A picture of very many steps is what every sampler comes to in the end. Settings are judged by how near they come to it,
and how long they take; those that nothing beats in both make the front from which presets are chosen.
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
from gradina.pipeline.generate import generate, steps
from gradina.pipeline.model import StableDiffusion, to_pixels
from gradina.pipeline.resolve import resolve
from gradina.request import Request
from gradina.request_checks import choice
from gradina.tasks.metrics import psnr

Settings = Mapping[str, Any]  # fields of a Request

SAMPLERS = ("dpmpp_2m", "unipc", "euler", "ddim", "heun", "pndm", "lms")  # without noise of their own
SHORTCUTS: tuple[Settings, ...] = (
    {"reuse": 2},
    {"reuse": 3},
    {"guidance_interval": (0.3, 6.0)},
    {"guidance_interval": (0.3, 6.0), "reuse": 2},
)
SURVEYED, LADDER = 10, (20, 6, 14, 4, 28, 8, 40)  # steps: of the first look, then of the best three
ENDLESS: Settings = {"sampler": "dpmpp_2m", "schedule": "trailing", "steps": 100}  # what all come to
LEVELS = {"fast": 20.0, "balanced": 27.0, "best": 35.0}  # dB: the same things; hardly to be told apart; not at all


@dataclass(frozen=True)
class Trial:
    """Settings that were tried: seconds for a picture, and its likeness in dB (PSNR) to that of very many steps."""

    settings: Settings
    seconds: float
    likeness: float


def tune(
    model: StableDiffusion, request: Request, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Trial]:
    """Tries settings for the prompts of a request, the most promising first, for about so many seconds.

    Raises GradinaError if they do not suffice for the first picture.
    """
    start = clock()
    request = resolve(model, request).request
    asked = [request.alone(i) for i in range(len(request.prompts))]
    step = _seconds_of_a_step(model, asked[0], clock)
    endless = step * ENDLESS["steps"]
    asked = asked[: max(1, int(seconds / 4 / endless))]
    if endless > seconds / 2:
        raise GradinaError(
            f"a step takes {step:.2g} s here, so the picture to compare with takes {endless / 60:.1f} minutes; "
            f"give at least {math.ceil(2 * endless / 60)} minutes"
        )
    goals = [_drawn(model, one, ENDLESS)[0] for one in asked]
    trials: list[Trial] = []
    for settings in _promising(model, request, trials):
        calls = settings["steps"] * (2 if settings["sampler"] == "heun" else 1)
        if clock() - start + calls * step * len(asked) <= seconds:
            trials.append(_tried(model, asked, goals, settings, clock))
            yield trials[-1]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both, the quickest first."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.seconds, -t.likeness)):
        if not kept or trial.likeness > kept[-1].likeness:
            kept.append(trial)
    return kept


def presets(trials: Sequence[Trial]) -> dict[str, Trial]:
    """For each level the quickest that reaches it, or else the likest of all."""
    best = front(trials)
    return {name: next((t for t in best if t.likeness >= level), best[-1]) for name, level in LEVELS.items() if best}


def keep(model: StableDiffusion, trials: Sequence[Trial]) -> Path:
    """Writes what was found to where `preset` looks for it; the file."""
    path = _kept(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": model.about, "date": date.today().isoformat(), "threads": torch.get_num_threads()}
    with atomic_write(path) as file:
        file.write(json.dumps({**about, "trials": [asdict(t) for t in trials]}, indent=1).encode())
    return path


def preset(model: StableDiffusion, name: str) -> Settings:
    """The settings of a preset: fast, balanced, best, or the likest in so many seconds ("1.5s").

    Raises RequestError if there is no such preset, or nothing was measured for this model.
    """
    path = _kept(model)
    try:
        found = [Trial(**t) for t in json.loads(path.read_text(encoding="utf-8"))["trials"]]
    except (OSError, ValueError, TypeError, KeyError):
        found = []
    if not found:
        raise RequestError(f"preset: {name}: nothing has been measured for this model here; run `gradina tune` first")
    try:
        limit = float(name.removesuffix("s"))
    except ValueError:
        return presets(found)[choice("preset", name, (*LEVELS, "1.5s"))].settings
    within = [t for t in front(found) if t.seconds <= limit]
    if not within:
        raise RequestError(f"preset: {name}: the quickest that was found takes {front(found)[0].seconds:.2g} s")
    return within[-1].settings


def _kept(model: StableDiffusion) -> Path:
    numbers = str(model.dtype).removeprefix("torch.")
    return cache_folder() / "tuned" / f"{model.hash or model.name}-{numbers}-{model.device.type}.json"


def _promising(model: StableDiffusion, request: Request, trials: Sequence[Trial]) -> Iterator[Settings]:
    """What to try next, given what was found: `trials` grows meanwhile."""
    schedules = dict.fromkeys((request.schedule, "karras", "trailing"))
    for schedule in schedules:
        for sampler in SAMPLERS:
            yield {"sampler": sampler, "schedule": schedule, "steps": SURVEYED}
    surveyed = sorted(front(trials), key=lambda t: -t.likeness)
    surveyed += sorted((t for t in trials if t not in surveyed), key=lambda t: -t.likeness)
    for count in LADDER:
        for trial in surveyed[:3]:
            yield {**trial.settings, "steps": count}
    whole = model.engine in ("compile", "openvino")  # the U-Net is
    for shortcut in (s for s in SHORTCUTS if not (whole and "reuse" in s)):
        for trial in front([t for t in trials if set(t.settings) == {"sampler", "schedule", "steps"}]):
            yield {**trial.settings, **shortcut}


def _tried(
    model: StableDiffusion,
    asked: Sequence[Request],
    goals: Sequence[torch.Tensor],
    settings: Settings,
    clock: Callable[[], float],
) -> Trial:
    taken, likeness = [], []
    for one, goal in zip(asked, goals, strict=True):
        start = clock()
        (pixels,) = _drawn(model, one, settings)
        taken.append(clock() - start)
        likeness.append(min(99.0, psnr(pixels, goal, 2)))
    return Trial(settings, statistics.median(taken), statistics.fmean(likeness))


def _seconds_of_a_step(model: StableDiffusion, request: Request, clock: Callable[[], float]) -> float:
    walk = steps(model, replace(request, steps=3))
    next(walk)  # with whatever is prepared once
    start = clock()
    for _ in walk:
        pass
    return (clock() - start) / 2


def _drawn(model: StableDiffusion, request: Request, settings: Settings) -> list[torch.Tensor]:
    return [to_pixels(picture.image) for picture in generate(model, replace(request, **settings))]
