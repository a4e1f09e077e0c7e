"""Rows, tables and plots."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gradina.bench.end_to_end import ProcessResult
from gradina.bench.report import plot, process_rows, table, timing_rows
from gradina.bench.timing import Failed, Times
from gradina.errors import GradinaError


def test_timing_rows_have_gflop_peak_and_speedup() -> None:
    times = {"gradina bf16": Times((1.0, 2.0, 3.0)), "diffusers bf16": Times((4.0, 4.0, 6.0)), "a": Failed("no memory")}
    rows = timing_rows(times, 100.0, {"bf16": {"matrix product": 100.0}})
    assert rows["gradina bf16"] == {
        "seconds": 2.0, "quartiles": [1.5, 2.5], "GFLOP/s": 50, "of the peak": 0.5,
    }  # fmt: skip
    assert rows["diffusers bf16"]["gradina bf16 is faster by"] == [2.0, 2.0, 3.0]
    assert rows["a"] == {"failed": "no memory"}
    assert set(timing_rows(times, None, {})["gradina bf16"]) == {"seconds", "quartiles"}


def test_process_rows_have_the_output_and_peak_memory(tmp_path: Path) -> None:
    runs = [ProcessResult(s, m, f'{{"load": {s / 2}}}') for s, m in ((1.0, 10.0), (3.0, 30.0), (2.0, 20.0))]
    rows = process_rows({"a": runs, "b": Failed("ZeroDivisionError: no")})
    assert rows == {"a": {"seconds": 2.0, "load": 1.0, "MB at most": 30}, "b": {"failed": "ZeroDivisionError: no"}}
    assert "| failed |" in table({"results": {"import": rows}})
    plot({"results": {"import": rows, "none": {"b": {"failed": "b"}}}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_table_has_a_column_for_every_key() -> None:
    rows = {"a": {"seconds": 1.5, "MB at most": 20}, "b": {"seconds": 2.0, "quartiles": [1.0, 3.0]}}
    assert table({"results": {"work": rows}}).splitlines() == [
        "**work**", "", "| | seconds | MB at most | quartiles |", "|---|---:|---:|---:|",
        "| a | 1.5 | 20 |  |", "| b | 2.0 |  | 1.0 to 3.0 |",
    ]  # fmt: skip


def test_without_matplotlib_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(GradinaError, match="pip install matplotlib"):
        plot({"results": {}}, tmp_path / "a.png")
