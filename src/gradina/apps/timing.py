"""The verb that measures how long things take here."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from gradina.apps import options as o
from gradina.apps.draw import check_target
from gradina.request import choice

PARTS = ("machine", "attention", "works", "pictures", "learning", "imports", "cold")


def bench(
    only: o.Only = None,
    rounds: o.Rounds = 5,
    size: o.Size = 512,
    output: o.Figures = None,
    plot: o.Plot = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Time Gradina on this machine, beside the peers that are installed (diffusers, openvino)."""
    for name, path, kinds in (("--output", output, (".json",)), ("--plot", plot, (".png", ".svg", ".pdf"))):
        if path is not None:
            check_target(name, path, kinds)
    parts = [choice("--only", part.strip(), PARTS) for part in only.split(",")] if only else list(PARTS)
    from gradina.bench import report as reports
    from gradina.bench.measure import measured
    from gradina.files import atomic_write
    from gradina.runtime import use_threads

    use_threads(threads)
    report = measured(parts, rounds, size, lambda text: None if quiet else typer.echo(f"measures {text}", err=True))
    typer.echo(reports.table(report))
    if output is not None:
        with atomic_write(output) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
    if plot is not None:
        reports.plot(report, Path(plot))
