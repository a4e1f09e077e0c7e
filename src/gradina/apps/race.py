"""The verb that measures how long things take here."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from gradina.apps import options as o
from gradina.apps.draw import check_target
from gradina.request import choice

if TYPE_CHECKING:
    from gradina.bench.work import Shapes

PARTS = ("machine", "attention", "works", "pictures", "imports", "cold")
ATTENTION = ((2, 8, 4096, 40), (2, 8, 1024, 80), (2, 8, 256, 160))  # batch, heads, tokens, width: SD 1.5 at 512x512


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
    from gradina.files import atomic_write
    from gradina.runtime import use_threads

    use_threads(threads)
    report = measured(parts, rounds, size, quiet)
    typer.echo(reports.table(report))
    if output is not None:
        with atomic_write(output) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
    if plot is not None:
        reports.plot(report, Path(plot))


def measured(parts: list[str], rounds: int, size: int, quiet: bool) -> dict[str, Any]:
    """The report of some parts; what is measured is said when it begins."""
    from gradina.bench import machine, whole
    from gradina.bench import report as reports
    from gradina.bench.work import WORKS, sd15, write_model

    def say(text: str) -> None:
        if not quiet:
            typer.echo(f"measures {text}", err=True)

    results: dict[str, Any] = {}
    peaks: dict[str, dict[str, float]] = {}
    if "machine" in parts:
        say("what the machine can do")
        peaks = machine.peaks()
        for dtype, of_type in peaks.items():
            results[f"the machine, {dtype}"] = {name: {"GFLOP/s": round(speed)} for name, speed in of_type.items()}
    if "attention" in parts:
        say("attention")
        results |= attention(rounds, peaks)
    shapes = sd15(size)
    with TemporaryDirectory() as room:
        folder = Path(room) / "model"
        if {"works", "pictures"} & set(parts):
            say("nothing yet: it writes a model of Stable Diffusion 1.5's shape, with random weights")
            write_model(shapes, folder)
        for work in WORKS if "works" in parts else ():
            say(work)
            results[f"{work}, {size}x{size}"] = raced(folder, shapes, work, rounds, peaks)
        if "pictures" in parts:
            say("whole pictures")
            results[f"a picture, {size}x{size}, 20 steps"] = reports.whole(whole.pictures(folder, size, 20, 1))
    if "imports" in parts:
        say("imports")
        results["import"] = reports.whole(whole.imports(rounds))
    if "cold" in parts:
        say("the command line")
        results["from a cold command line to a PNG, shipped model"] = reports.whole(whole.cold(rounds))
    return {"date": date.today().isoformat(), **machine.about(), "rounds": rounds, "results": results}


def raced(folder: Path, shapes: Shapes, work: str, rounds: int, peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One work, by everyone."""
    from gradina.bench.contestants import contestants
    from gradina.bench.race import race
    from gradina.bench.report import raced as rows

    runners = {name: opener(folder, shapes, work) for name, opener in contestants().items()}
    return rows(race(runners, rounds), shapes.gflop[work], peaks)


def attention(rounds: int, peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Our attention beside torch's own, alone."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from gradina.bench.race import race
    from gradina.bench.report import raced as rows
    from gradina.nn.attention import attention as ours
    from gradina.runtime import DTYPES

    results = {}
    for b, heads, n, d in ATTENTION:
        runners = {}
        for dtype in ("fp32", "bf16"):
            q, k, v = (torch.randn(b, n, heads, d).to(DTYPES[dtype]).transpose(1, 2) for _ in range(3))
            for name, way in (("gradina", ours), ("torch", scaled_dot_product_attention)):
                runners[f"{name} {dtype}"] = torch.inference_mode()(lambda w=way, x=(q, k, v): w(*x))
        gflop = 4 * b * heads * n * n * d / 1e9
        results[f"attention ({b}, {heads}, {n}, {d})"] = rows(race(runners, rounds), gflop, peaks)
    return results
