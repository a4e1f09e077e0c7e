"""What was measured, as a table, as JSON, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gradina.bench.autotune import Trial, front, presets
from gradina.bench.end_to_end import Taken
from gradina.bench.timing import Failed, Times
from gradina.errors import MissingExtra

Report = dict[str, Any]
OURS = "gradina"  # the names that begin so


def raced(times: Mapping[str, Times | Failed], gflop: float | None, peaks: Mapping[str, Mapping[str, float]]) -> Report:
    """Rows of a race: median and quartiles in seconds, GFLOP/s, share of the machine's peak, how much quicker ours are.

    This last as the median of the ratios to each peer, turn by turn, and their quartiles.
    """
    rows: Report = {}
    for name, taken in times.items():
        if isinstance(taken, Failed):
            rows[name] = {"failed": taken.why}
            continue
        row: Report = {"seconds": _round(taken.median), "quartiles": [_round(q) for q in taken.quartiles]}
        peak = max(peaks.get(name.rpartition(" ")[2], {"": 0.0}).values())
        if gflop:
            row["GFLOP/s"] = round(gflop / taken.median)
        if gflop and peak:
            row["of the peak"] = round(gflop / taken.median / peak, 2)
        for own, ours in times.items() if not name.startswith(OURS) else ():
            if isinstance(ours, Times) and own.startswith(OURS):
                ratios = ours.beside(taken)
                row[f"{own} is faster by"] = [round(x, 2) for x in (ratios.median, *ratios.quartiles)]
        rows[name] = row
    return rows


def whole(taken: Mapping[str, list[Taken] | Failed]) -> Report:
    """Rows of whole processes: seconds, what they said of their parts, and memory."""
    rows: Report = {}
    for name, runs in taken.items():
        if isinstance(runs, Failed):
            rows[name] = {"failed": runs.why}
            continue
        row: Report = {"seconds": _round(statistics.median(r.seconds for r in runs))}
        parts = [r.told for r in runs if r.said.strip().endswith("}")]
        for part in parts[0] if parts else ():
            row[part] = _round(statistics.median(told[part] for told in parts))
        row["MB at most"] = round(max(r.megabytes for r in runs))
        rows[name] = row
    return rows


def _round(seconds: float) -> float:
    return float(f"{seconds:.3g}")


def table(report: Report) -> str:
    """All rows, in Markdown."""
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
    """Seconds of everyone, a chart for each work. Raises MissingExtra where there is no matplotlib."""
    plt = pyplot()
    timed = {t: {n: r for n, r in rows.items() if "seconds" in r} for t, rows in report["results"].items()}
    results = {title: rows for title, rows in timed.items() if rows}
    figure, axes = plt.subplots(len(results), 1, figsize=(8, 1 + sum(0.4 + 0.3 * len(r) for r in results.values())))
    for (title, rows), one in zip(results.items(), axes if len(results) > 1 else [axes], strict=True):
        names = list(rows)[::-1]
        seconds = [rows[name]["seconds"] for name in names]
        bars = one.barh(names, seconds, color=["#c2571a" if "gradina" in name else "#9aa5b1" for name in names])
        one.bar_label(bars, [f"{s:g} s" for s in seconds], padding=4)
        one.set_title(title, loc="left")
        one.set_xlim(0, 1.2 * max(seconds))
        one.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def tried(trials: Sequence[Trial], path: Path) -> None:
    """Likeness over seconds of all settings that were tried, with the front. Raises MissingExtra as `plot` does."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5))
    for shortcut, colour in ((False, "#9aa5b1"), (True, "#5b8db8")):
        some = [t for t in trials if shortcut == bool({"reuse", "guidance_interval"} & set(t.settings))]
        label = "with a shortcut" if shortcut else "exact"
        axes.scatter([t.seconds for t in some], [t.likeness for t in some], s=14, color=colour, label=label)
    best = front(trials)
    axes.plot([t.seconds for t in best], [t.likeness for t in best], color="#c2571a", label="nothing beats these")
    for name, trial in presets(trials).items():
        axes.annotate(name, (trial.seconds, trial.likeness), xytext=(6, -12), textcoords="offset points")
    axes.set(xscale="log", xlabel="seconds for a picture", ylabel="dB to the picture of very many steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def pyplot() -> Any:
    """What draws charts; MissingExtra where it is not installed."""
    try:
        return import_module("matplotlib.pyplot")
    except ImportError:
        raise MissingExtra("--plot draws with matplotlib; install it: pip install matplotlib") from None
