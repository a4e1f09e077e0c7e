"""All measurements, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import scaled_dot_product_attention

from gradina.bench import end_to_end, machine, training_step, workloads
from gradina.bench import report as reports
from gradina.bench.backends import Opener, backends
from gradina.bench.report import Peaks, Report
from gradina.bench.timing import Failed, Runner, time_interleaved
from gradina.nn.ops import attention as native_attention
from gradina.runtime.device import DTYPES
from gradina.weights.open import open_source
from gradina.weights.registry import shipped

ATTENTION = ((2, 8, 4096, 40), (2, 8, 1024, 80), (2, 8, 256, 160))  # batch, heads, tokens, width: SD 1.5 at 512x512


def measure(
    parts: Sequence[str], rounds: int, size: int, announce: Callable[[str], None], device: str = "cpu"
) -> Iterator[Report]:
    """The report of some parts (see `gradina bench --help`) as it grows; `announce` gets what is measured next."""
    report: Report = {"date": date.today().isoformat(), **machine.environment(device), "rounds": rounds, "results": {}}
    for results in _results(parts, rounds, size, announce, device):
        report["results"] |= results
        yield report


def _results(
    parts: Sequence[str], rounds: int, size: int, announce: Callable[[str], None], device: str
) -> Iterator[Report]:  # fmt: skip
    peaks: Peaks = {}
    if "machine" in parts:
        announce("what the machine can do")
        peaks = machine.peaks(device)
        yield {
            f"the machine, {dtype}": {name: {"GFLOP/s": round(speed)} for name, speed in speeds.items()}
            for dtype, speeds in peaks.items()
        }
    if "attention" in parts:
        announce("attention")
        yield attention(rounds, peaks)
    shapes = workloads.sd15(size)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if {"works", "pictures"} & set(parts):
            announce("nothing yet: it writes a model of Stable Diffusion 1.5's shape, with random weights")
            workloads.write_model(shapes, folder)
        for name in workloads.WORKLOADS if "works" in parts else ():
            announce(name)
            yield {f"{name}, {size}x{size}": workload(folder, shapes, name, rounds, peaks, device)}
        if "pictures" in parts:
            announce("whole pictures")
            results = end_to_end.pictures(folder, size, 20, 1, device)
            yield {f"a picture, {size}x{size}, 20 steps": reports.process_rows(results)}
    if "learning" in parts:
        announce("a step of training")
        for name, folder in shipped().items():
            yield {f"a step of training, {name}, batch of {training_step.BATCH}": training(folder, rounds, peaks)}
    if "imports" in parts:
        announce("imports")
        yield {"import": reports.process_rows(end_to_end.imports(rounds))}
    if "cold" in parts:
        announce("the command line")
        results = end_to_end.cold_start(rounds)
        yield {"from a cold command line to a PNG, shipped model": reports.process_rows(results)}


def workload(
    folder: Path, shapes: workloads.Shapes, name: str, rounds: int, peaks: Peaks, device: str = "cpu"
) -> Report:  # fmt: skip
    """One workload, by all backends."""
    known = backends(device)  # opened from the end: the export takes most memory, so it comes while that is free
    opened = {backend: _opened(known[backend], folder, shapes, name) for backend in reversed(list(known))}
    times = time_interleaved({backend: opened[backend] for backend in known}, rounds)
    return reports.timing_rows(times, shapes.gflop[name], peaks)


def _opened(opener: Opener, folder: Path, shapes: workloads.Shapes, name: str) -> Runner | Failed:
    try:
        return opener(folder, shapes, name)
    except Exception as error:
        return Failed.of(error)


def training(folder: Path, rounds: int, peaks: Peaks) -> Report:
    """A training step, by all backends."""
    gflop = training_step.gflop(open_source(folder).unet.config)
    return reports.timing_rows(time_interleaved(training_step.backends(folder), rounds), gflop, peaks)


def attention(rounds: int, peaks: Peaks) -> Report:
    """Native attention beside PyTorch's."""
    results = {}
    for b, heads, n, d in ATTENTION:
        runners: dict[str, Runner] = {}
        for dtype in ("fp32", "bf16"):
            q, k, v = (torch.randn(b, n, heads, d).to(DTYPES[dtype]).transpose(1, 2) for _ in range(3))
            for name, attend in (("gradina", native_attention), ("torch", scaled_dot_product_attention)):
                runners[f"{name} {dtype}"] = torch.inference_mode()(partial(attend, q, k, v))
        gflop = 4 * b * heads * n * n * d / 1e9
        results[f"attention ({b}, {heads}, {n}, {d})"] = reports.timing_rows(
            time_interleaved(runners, rounds), gflop, peaks
        )
    return results
