"""`gradina bench`: it measures, writes JSON and a plot, and refuses what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch

import gradina
from gradina.apps.cli.main import main
from gradina.bench import machine, measure, workloads
from gradina.bench.workloads import Shapes


def test_bench_writes_a_report_and_a_plot(
    tiny: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workloads, "sd15", lambda size: tiny)
    monkeypatch.setattr(machine, "SIDE", 64)
    monkeypatch.setattr(measure, "ATTENTION", ((1, 2, 64, 40),))
    options = ["--only", "machine, attention,works", "--rounds", "2", "-o", "bench.json", "--plot", "bench.png"]
    assert main(["bench", *options]) == 0
    output = capsys.readouterr()
    assert "**U-Net step, 512x512**" in output.out
    assert "measures attention" in output.err
    report = json.loads(Path("bench.json").read_text())
    assert report["rounds"] == 2
    assert report["torch"] == torch.__version__
    assert report["gradina"] == gradina.__version__
    assert report["diffusers"] == diffusers.__version__
    rows = report["results"]["U-Net step, 512x512"]
    assert {"gradina fp32", "gradina bf16", "diffusers fp32", "diffusers bf16"} <= rows.keys()
    median, low, high = rows["diffusers fp32"]["gradina bf16 is faster by"]
    assert 0 < low <= median <= high
    assert set(rows["gradina bf16"]) == {"seconds", "quartiles", "GFLOP/s", "of the peak"}
    assert Path("bench.png").stat().st_size > 1000


def test_bench_refuses_unknown_parts_devices_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "pony"]) == 2
    assert "--only: there is no 'pony'" in capsys.readouterr().err
    assert main(["bench", "--only", "machine", "--device", "toaster"]) == 2
    assert "device: toaster cannot be used here" in capsys.readouterr().err
    assert main(["bench", "--only", "learning", "--device", "cuda"]) == 2
    assert "(choices: machine, works, pictures)" in capsys.readouterr().err
    assert main(["bench", "-o", str(tmp_path / "bench.txt")]) == 2
    assert ".json" in capsys.readouterr().err
