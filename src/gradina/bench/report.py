"""Reports: rows of figures, as a Markdown table, as JSON, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gradina.bench.autotune import Trial, front, presets
from gradina.bench.end_to_end import ProcessResult
from gradina.bench.timing import Failed, Times
from gradina.errors import MissingExtra

Report = dict[str, Any]
Peaks = Mapping[str, Mapping[str, float]]  # GFLOP/s by dtype and operation


def timing_rows(times: Mapping[str, Times | Failed], gflop: float | None, peaks: Peaks) -> Report:
    """One row per backend: seconds, GFLOP/s, fraction of the peak, and over peers Gradina's speedup, round by round."""
    rows: Report = {}
    for name, taken in times.items():
        if isinstance(taken, Failed):
            rows[name] = {"failed": taken.reason}
            continue
        row: Report = {"seconds": _round(taken.median), "quartiles": [_round(q) for q in taken.quartiles]}
        peak = max(peaks.get(name.rpartition(" ")[2], {"": 0.0}).values())
        if gflop:
            row["GFLOP/s"] = round(gflop / taken.median)
        if gflop and peak:
            row["of the peak"] = round(gflop / taken.median / peak, 2)
        for own, ours in times.items() if not name.startswith("gradina") else ():
            if isinstance(ours, Times) and own.startswith("gradina"):
                ratios = ours.ratios(taken)
                row[f"{own} is faster by"] = [round(x, 2) for x in (ratios.median, *ratios.quartiles)]
        rows[name] = row
    return rows


def process_rows(results: Mapping[str, list[ProcessResult] | Failed]) -> Report:
    """One row per process: seconds, the figures in its JSON output, and peak memory."""
    rows: Report = {}
    for name, runs in results.items():
        if isinstance(runs, Failed):
            rows[name] = {"failed": runs.reason}
            continue
        row: Report = {"seconds": _round(statistics.median(r.seconds for r in runs))}
        outputs = [r.json for r in runs if r.stdout.strip().endswith("}")]
        for key in outputs[0] if outputs else ():
            row[key] = _round(statistics.median(output[key] for output in outputs))
        row["MB at most"] = round(max(r.megabytes for r in runs))
        rows[name] = row
    return rows


def _round(seconds: float) -> float:
    return float(f"{seconds:.3g}")


def table(report: Report) -> str:
    """The results as Markdown tables."""
    lines = []
    for title, rows in report["results"].items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += ["", f"**{title}**", "", f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        for name, row in rows.items():
            cells = (_cell(row.get(column)) for column in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def _cell(value: object) -> str:
    if isinstance(value, list):
        *middle, low, high = value
        return f"{middle[0]} ({low} to {high})" if middle else f"{low} to {high}"
    return "" if value is None else str(value)


def plot(report: Report, path: Path) -> None:
    """Draws a bar chart of the seconds of each result. Raises MissingExtra without matplotlib."""
    plt = pyplot()
    timed = {t: {n: r for n, r in rows.items() if "seconds" in r} for t, rows in report["results"].items()}
    results = {title: rows for title, rows in timed.items() if rows}
    figure, axes = plt.subplots(len(results), 1, figsize=(8, 1 + sum(0.4 + 0.3 * len(r) for r in results.values())))
    for (title, rows), ax in zip(results.items(), axes if len(results) > 1 else [axes], strict=True):
        names = list(rows)[::-1]
        seconds = [rows[name]["seconds"] for name in names]
        bars = ax.barh(names, seconds, color=["#c2571a" if "gradina" in name else "#9aa5b1" for name in names])
        ax.bar_label(bars, [f"{s:g} s" for s in seconds], padding=4)
        ax.set_title(title, loc="left")
        ax.set_xlim(0, 1.2 * max(seconds))
        ax.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_trials(trials: Sequence[Trial], path: Path) -> None:
    """Draws PSNR over seconds of all trials, with the Pareto front. Raises MissingExtra without matplotlib."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5))
    for shortcut, colour in ((False, "#9aa5b1"), (True, "#5b8db8")):
        group = [t for t in trials if shortcut == bool({"reuse", "guidance_interval"} & set(t.settings))]
        label = "with a shortcut" if shortcut else "exact"
        axes.scatter([t.seconds for t in group], [t.psnr for t in group], s=14, color=colour, label=label)
    best = front(trials)
    axes.plot([t.seconds for t in best], [t.psnr for t in best], color="#c2571a", label="Pareto front")
    for name, trial in presets(trials).items():
        axes.annotate(name, (trial.seconds, trial.psnr), xytext=(6, -12), textcoords="offset points")
    axes.set(xscale="log", xlabel="seconds for a picture", ylabel="PSNR to the converged picture, dB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot().close(figure)


def pyplot() -> Any:
    """matplotlib.pyplot. Raises MissingExtra if it is not installed."""
    try:
        return import_module("matplotlib.pyplot")
    except ImportError:
        raise MissingExtra("--plot draws with matplotlib; install it: pip install matplotlib") from None
