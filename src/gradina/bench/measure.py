"""Everything that can be measured, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import scaled_dot_product_attention

from gradina.bench import end_to_end, machine, training_step, workloads
from gradina.bench import report as reports
from gradina.bench.backends import Opener, contestants
from gradina.bench.report import Report
from gradina.bench.timing import Failed, Runner, race
from gradina.nn.ops import attention as own
from gradina.runtime.device import DTYPES
from gradina.weights.open import open_source
from gradina.weights.registry import shipped

ATTENTION = ((2, 8, 4096, 40), (2, 8, 1024, 80), (2, 8, 256, 160))  # batch, heads, tokens, width: SD 1.5 at 512x512

Peaks = Mapping[str, Mapping[str, float]]  # GFLOP/s


def measured(
    parts: Sequence[str], rounds: int, size: int, say: Callable[[str], None], device: str = "cpu"
) -> Iterator[Report]:
    """The report of some parts (see `gradina bench --help`) as it grows; `say` is told what is measured next."""
    report: Report = {"date": date.today().isoformat(), **machine.about(device), "rounds": rounds, "results": {}}
    for results in _results(parts, rounds, size, say, device):
        report["results"] |= results
        yield report


def _results(
    parts: Sequence[str], rounds: int, size: int, say: Callable[[str], None], device: str
) -> Iterator[Report]:  # fmt: skip
    peaks: Peaks = {}
    if "machine" in parts:
        say("what the machine can do")
        peaks = machine.peaks(device)
        yield {
            f"the machine, {dtype}": {name: {"GFLOP/s": round(speed)} for name, speed in of_type.items()}
            for dtype, of_type in peaks.items()
        }
    if "attention" in parts:
        say("attention")
        yield attention(rounds, peaks)
    shapes = workloads.sd15(size)
    with TemporaryDirectory() as room:
        folder = Path(room) / "model"
        if {"works", "pictures"} & set(parts):
            say("nothing yet: it writes a model of Stable Diffusion 1.5's shape, with random weights")
            workloads.write_model(shapes, folder)
        for name in workloads.WORKS if "works" in parts else ():
            say(name)
            yield {f"{name}, {size}x{size}": raced(folder, shapes, name, rounds, peaks, device)}
        if "pictures" in parts:
            say("whole pictures")
            yield {
                f"a picture, {size}x{size}, 20 steps": reports.whole(end_to_end.pictures(folder, size, 20, 1, device))
            }
    if "learning" in parts:
        say("a step of training")
        for name, folder in shipped().items():
            yield {f"a step of training, {name}, batch of {training_step.BATCH}": learnt(folder, rounds, peaks)}
    if "imports" in parts:
        say("imports")
        yield {"import": reports.whole(end_to_end.imports(rounds))}
    if "cold" in parts:
        say("the command line")
        yield {"from a cold command line to a PNG, shipped model": reports.whole(end_to_end.cold(rounds))}


def raced(
    folder: Path, shapes: workloads.Shapes, name: str, rounds: int, peaks: Peaks, device: str = "cpu"
) -> Report:  # fmt: skip
    """One work, by everyone."""
    known = list(contestants(device).items())  # the last export, which takes most memory: while it is free
    opened = {who: _opened(opener, folder, shapes, name) for who, opener in reversed(known)}
    return reports.raced(race({who: opened[who] for who, _ in known}, rounds), shapes.gflop[name], peaks)


def _opened(opener: Opener, folder: Path, shapes: workloads.Shapes, name: str) -> Runner | Failed:
    try:
        return opener(folder, shapes, name)
    except Exception as error:
        return Failed.of(error)


def learnt(folder: Path, rounds: int, peaks: Peaks) -> Report:
    """A step of training, by everyone."""
    gflop = training_step.gflop(open_source(folder).unet.config)
    return reports.raced(race(training_step.learners(folder), rounds), gflop, peaks)


def attention(rounds: int, peaks: Peaks) -> Report:
    """Our attention beside torch's own, alone."""
    results = {}
    for b, heads, n, d in ATTENTION:
        runners = {}
        for dtype in ("fp32", "bf16"):
            q, k, v = (torch.randn(b, n, heads, d).to(DTYPES[dtype]).transpose(1, 2) for _ in range(3))
            for name, way in (("gradina", own), ("torch", scaled_dot_product_attention)):
                runners[f"{name} {dtype}"] = torch.inference_mode()(lambda w=way, x=(q, k, v): w(*x))
        gflop = 4 * b * heads * n * n * d / 1e9
        results[f"attention ({b}, {heads}, {n}, {d})"] = reports.raced(race(runners, rounds), gflop, peaks)
    return results
