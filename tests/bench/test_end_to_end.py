"""Fresh processes: time, peak memory, output, failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradina.bench import end_to_end
from gradina.bench.end_to_end import PICTURE, ProcessResult, installed, run_python
from gradina.bench.timing import Failed
from gradina.errors import GradinaError


def test_a_process_is_measured() -> None:
    result = run_python("x = b'x' * 200_000_000; print('{\"answer\": 3}')")
    assert result.json == {"answer": 3}
    assert 0 < result.seconds < 20
    assert 200 < result.megabytes < 250
    with pytest.raises(GradinaError, match="ZeroDivisionError"):
        run_python("1 / 0")


def test_pictures_are_drawn_by_all_backends(folder: Path) -> None:
    for name, script in installed(PICTURE).items():
        seconds = run_python(script, str(folder), "fp32", "16", "2", "cpu").json
        assert 0 < seconds["load"] < seconds["first step"] < seconds["picture"], name
    seconds = run_python(PICTURE["gradina"], str(folder), "bf16", "16", "2", "cpu", "low-memory").json
    assert seconds["load"] < seconds["picture"]


def test_pictures_warm_up_and_cover_all_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def record(script: str, folder: str, *arguments: str) -> ProcessResult:
        calls.append(" ".join(arguments))
        return ProcessResult(1.0, 2.0, "{}")

    monkeypatch.setattr(end_to_end, "run_python", record)
    assert len(end_to_end.pictures(tmp_path, 16, 20, 1)) == 5
    warmup = ["fp32 16 2 cpu", "bf16 16 2 cpu", "fp32 16 2 cpu", "bf16 16 2 cpu", "bf16 16 2 cpu low-memory"]
    assert calls == warmup + [call.replace(" 2", " 20") for call in warmup]
    calls.clear()
    assert len(end_to_end.pictures(tmp_path, 16, 2, 1, "cuda")) == 4
    assert calls == ["fp32 16 2 cuda", "fp16 16 2 cuda"] * 4


def test_a_failed_import_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "IMPORTS", {"gradina": "import json", "torch": "import json; 1 / 0"})
    results = end_to_end.imports(1)
    assert isinstance(runs := results["gradina"], list)
    assert runs[0].seconds > 0
    assert isinstance(failed := results["torch"], Failed)
    assert "ZeroDivisionError" in failed.reason
