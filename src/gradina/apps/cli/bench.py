"""The verbs that measure how long things take here, and what is worth it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.generate import open_model
from gradina.apps.cli.output import check_target, progress
from gradina.files import atomic_write, cache_folder, check_writable_folder
from gradina.request import Request
from gradina.request_checks import check_choice

if TYPE_CHECKING:
    from gradina.bench.autotune import Trial

TUNING_PROMPTS = ("a red apple", "a cat", "a house", "a guitar", "a red car", "an owl")

PARTS = ("machine", "attention", "works", "pictures", "learning", "imports", "cold")
ACCELERATOR_PARTS = ("machine", "works", "pictures")  # on another device than the CPU


def bench(
    only: o.Only = None,
    rounds: o.Rounds = 5,
    size: o.Size = 512,
    output: o.BenchJson = None,
    plot: o.Plot = None,
    device: o.BenchDevice = "cpu",
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Time Gradina on this machine, beside the peers that are installed (diffusers, openvino)."""
    for name, path, kinds in (("--output", output, (".json",)), ("--plot", plot, (".png", ".svg", ".pdf"))):
        if path is not None:
            check_target(name, path, kinds)
    known = PARTS if device == "cpu" else ACCELERATOR_PARTS
    parts = [check_choice("--only", part.strip(), known) for part in only.split(",")] if only else list(known)
    from gradina.bench import report as reports
    from gradina.bench.measure import measure
    from gradina.runtime.device import pick_device, use_threads

    use_threads(threads)
    place = str(pick_device(device))
    report: reports.Report = {}
    for report in measure(
        parts, rounds, size, lambda text: None if quiet else typer.echo(f"measures {text}", err=True), place
    ):
        if output is not None:  # after each part: the next might be too much for this machine
            with atomic_write(output) as file:
                file.write((json.dumps(report, indent=2) + "\n").encode())
    typer.echo(reports.table(report))
    if plot is not None:
        reports.plot(report, Path(plot))


def tune(
    prompts: o.TunedPrompts = None,
    model: o.Model = None,
    minutes: o.Minutes = 5,
    plot: o.Plot = None,
    variant: o.Variant = None,
    prediction: o.Prediction = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    engine: o.Engine = None,
    vae: o.Vae = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Find which settings are worth their seconds with a model on this machine; `--preset` then uses them."""
    if plot is not None:
        check_target("--plot", plot, (".png", ".svg", ".pdf"))
    check_writable_folder(cache_folder())
    request = Request(prompt=tuple(prompts or TUNING_PROMPTS), seed=0)
    opened = open_model(
        model, threads, engine, variant=variant, prediction=prediction, device=device, dtype=dtype, vae=vae
    )
    from gradina.bench import autotune
    from gradina.bench.report import plot_trials, pyplot

    if plot is not None:
        pyplot()
    trials: list[Trial] = []
    with progress(quiet) as advance:
        for trial in autotune.tune(opened, request, 60 * minutes):
            trials.append(trial)
            advance("settings tried", len(trials), 0)
    typer.echo(presets_table(trials))
    typer.echo(autotune.save_trials(opened, trials))
    if plot is not None:
        plot_trials(trials, Path(plot))
        typer.echo(plot)


def presets_table(trials: Sequence[Trial]) -> str:
    """The Pareto front as a table: seconds, dB, settings, and the presets among them."""
    from gradina.bench.autotune import front, presets

    named = presets(trials)
    lines = ["seconds     dB  settings"]
    for trial in front(trials):
        settings = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
        names = " ".join(name for name, one in named.items() if one == trial)
        lines.append(f"{trial.seconds:7.2f}  {trial.psnr:5.1f}  {settings}{names and f'  <- {names}'}")
    return "\n".join(lines)
