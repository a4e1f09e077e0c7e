"""Everyone computes the same, turns are fair, and what is told is what was measured."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gradina
from gradina.apps.cli.main import main
from gradina.bench import end_to_end, machine, measure, report, training_step, workloads
from gradina.bench.backends import contestants, elsewhere
from gradina.bench.timing import Failed, Times, race
from gradina.bench.workloads import WORKS, Shapes, sd15, write_model
from gradina.errors import GradinaError
from gradina.models.clip import TextConfig
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import VAEConfig
from gradina.weights.families import FAMILIES

TINY = Shapes(
    replace(
        FAMILIES["sd1"],
        unet=UNetConfig(widths=(32, 64), attention=(True, False), heads=(4, 4), blocks=1, context=32, size=8),
        text=TextConfig(width=32, inner=64, layers=2, heads=2),
        vae=VAEConfig(widths=(32, 32), blocks=1),
    ),
    size=16,
)


def test_turns_are_taken_in_changing_order() -> None:
    seen: list[str] = []
    times = race({"a": lambda: seen.append("a"), "b": lambda: (seen.append("b"), time.sleep(0.002))}, rounds=3)
    assert "".join(seen) == "baabbaab"
    assert [len(t.seconds) for t in times.values()] == [3, 3]
    assert times["a"].beside(times["b"]).median > 1


def test_times_are_told_by_median_quartiles_and_ratios() -> None:
    one, two = Times((1.0, 2.0, 3.0, 10.0, 2.0)), Times((2.0, 4.0, 6.0, 5.0, 4.0))
    assert one.median == 2
    assert one.quartiles == (2, 3)
    assert one.beside(two).median == 2
    assert Times((3.0,)).quartiles == (3, 3)


_ATTENTION = ((2, 40, 4096, 5), (2, 80, 1024, 5), (2, 160, 256, 5), (2, 160, 64, 1))  # batch, width, places, layers


def test_multiplications_are_counted_as_they_are_published() -> None:
    counted = sd15().gflop
    both = sum(4 * b * 8 * n * m * d for b, d, n, layers in _ATTENTION for m in (n, 77) for _ in range(layers)) / 1e9
    assert counted["U-Net step"] == pytest.approx(1354 + both, rel=0.01), "published counts leave attention out"
    assert counted["decoder"] == pytest.approx(2480, rel=0.02)
    b, n, width = 2, 77, 768
    layer = 4 * n * width * width + 2 * n * width * 4 * width + 2 * n * n * width
    assert counted["text encoder"] == pytest.approx(2 * b * 12 * layer / 1e9, rel=0.02)


@pytest.mark.parametrize("name", WORKS)
def test_everyone_computes_the_same(name: str, tmp_path: Path) -> None:
    write_model(TINY, tmp_path / "model")
    runners = contestants()
    assert len(runners) == 6
    found = {who: _tensor(opener(tmp_path / "model", TINY, name)()) for who, opener in runners.items()}
    expected = found["diffusers fp32"]
    for who, got in found.items():
        near = {"openvino fp32": 5e-3, "gradina fp32": 2e-4}.get(who, 0.25)  # OpenVINO keeps constants in halves
        assert (got.float() - expected).abs().max() <= near * expected.abs().max(), who


@pytest.mark.parametrize("name", WORKS)
def test_everyone_computes_the_same_elsewhere(name: str, tmp_path: Path) -> None:
    """As far as a CPU can tell; what is compiled there, only the device can."""
    write_model(TINY, tmp_path / "model")
    found = {
        who: _tensor(opener(tmp_path / "model", TINY, name)())
        for who, (_, opener) in elsewhere("cpu").items()
        if "compiled" not in who
    }
    assert set(found) == {"gradina fp32", "gradina fp16", "diffusers fp32", "diffusers fp16"}
    expected = found["diffusers fp32"]
    for who, got in found.items():
        near = 2e-4 if who.endswith("fp32") else 3e-2
        assert (got.float() - expected).abs().max() <= near * expected.abs().max(), who


def _tensor(made: Any) -> torch.Tensor:
    return made if isinstance(made, torch.Tensor) else torch.from_numpy(made[0])


def test_who_fails_costs_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = iter(range(10))
    runners = {"gradina bf16": lambda: None, "a": lambda: 1 // (1 - next(turns)), "b": Failed.of(MemoryError())}
    rows = report.raced(race(runners, rounds=3), None, {})
    assert set(rows["gradina bf16"]) == {"seconds", "quartiles"}
    assert rows["a"] == {"failed": "ZeroDivisionError: integer division or modulo by zero"}
    assert rows["b"] == {"failed": "MemoryError: MemoryError()"}
    monkeypatch.setattr(end_to_end, "IMPORTS", {"gradina": "import json", "torch": "import json; 1 / 0"})
    rows = report.whole(end_to_end.imports(1))
    assert rows["gradina"]["seconds"] > 0
    assert "ZeroDivisionError" in rows["torch"]["failed"]
    assert "| failed |" in report.table({"results": {"import": rows}})
    report.plot({"results": {"import": rows, "none": {"b": {"failed": "b"}}}}, tmp_path / "a.png")


def test_everyone_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of the first steps agree, so the steps before them did, too."""
    monkeypatch.setattr(training_step, "BATCH", 2)
    monkeypatch.setattr(training_step, "SETTINGS", replace(training_step.SETTINGS, lr=1e-2))
    write_model(TINY, tmp_path / "model")
    told = {who: [step() for _ in range(3)] for who, step in training_step.learners(tmp_path / "model").items()}
    assert list(told) == ["gradina fp32", "diffusers fp32", "gradina bf16", "diffusers bf16"]
    assert told["diffusers fp32"][2] < 0.98 * told["diffusers fp32"][0]
    assert told["gradina fp32"] == pytest.approx(told["diffusers fp32"], rel=2e-3)
    for who in ("gradina bf16", "diffusers bf16"):
        assert told[who] == pytest.approx(told["diffusers fp32"], rel=5e-2)


def test_steps_of_training_are_counted_there_and_twice_back() -> None:
    one = FlopCounterMode(display=False)
    unet, (z, _, t, cond) = UNet(TINY.family.unet), training_step.batch(TINY.family.unet)
    with one, sdpa_kernel(SDPBackend.MATH):  # the others are not counted on a CPU
        unet(z.requires_grad_(), t, cond.requires_grad_()).sum().backward()
    assert training_step.gflop(TINY.family.unet) == pytest.approx(one.get_total_flops() / 1e9, rel=0.01)


def test_a_process_is_measured() -> None:
    taken = end_to_end.python("x = b'x' * 200_000_000; print('{\"said\": 3}')")
    assert taken.told == {"said": 3}
    assert 0 < taken.seconds < 20
    assert 200 < taken.megabytes < 250
    with pytest.raises(GradinaError, match="ZeroDivisionError"):
        end_to_end.python("1 / 0")


def test_whole_pictures_are_drawn_by_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(TINY, tmp_path / "model")
    for name, script in end_to_end.installed(end_to_end.DRAW).items():
        told = end_to_end.python(script, str(tmp_path / "model"), "fp32", "16", "2", "cpu").told
        assert 0 < told["load"] < told["first step"] < told["picture"], name
    lean = end_to_end.python(
        end_to_end.DRAW["gradina"], str(tmp_path / "model"), "bf16", "16", "2", "cpu", "low-memory"
    )
    assert lean.told["load"] < lean.told["picture"]
    kinds: list[str] = []
    monkeypatch.setattr(
        end_to_end, "python", lambda *how: (kinds.append(" ".join(how[2:])), end_to_end.Taken(1.0, 2.0, "{}"))[1]
    )
    assert len(end_to_end.pictures(tmp_path, 16, 20, 1)) == 5
    few = ["fp32 16 2 cpu", "bf16 16 2 cpu", "fp32 16 2 cpu", "bf16 16 2 cpu", "bf16 16 2 cpu low-memory"]
    assert kinds == few + [how.replace(" 2", " 20") for how in few]
    kinds.clear()
    assert len(end_to_end.pictures(tmp_path, 16, 2, 1, "cuda")) == 4
    assert kinds == ["fp32 16 2 cuda", "fp16 16 2 cuda"] * 4


def test_the_verb_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workloads, "sd15", lambda size: replace(TINY, size=16))
    monkeypatch.setattr(machine, "SIDE", 64)
    monkeypatch.setattr(measure, "ATTENTION", ((1, 2, 64, 40),))
    wanted = ["--only", "machine, attention,works", "--rounds", "2", "-o", "bench.json", "--plot", "bench.png"]
    assert main(["bench", *wanted]) == 0
    said = capsys.readouterr()
    assert "**U-Net step, 512x512**" in said.out
    assert "measures attention" in said.err
    told = json.loads(Path("bench.json").read_text())
    assert told["rounds"] == 2
    assert told["torch"] == torch.__version__
    assert told["gradina"] == gradina.__version__
    assert told["diffusers"] == diffusers.__version__
    rows = told["results"]["U-Net step, 512x512"]
    assert {"gradina fp32", "gradina bf16", "diffusers fp32", "diffusers bf16"} <= rows.keys()
    middle, low, high = rows["diffusers fp32"]["gradina bf16 is faster by"]
    assert 0 < low <= middle <= high
    assert set(rows["gradina bf16"]) == {"seconds", "quartiles", "GFLOP/s", "of the peak"}
    assert Path("bench.png").stat().st_size > 1000


def test_what_it_cannot_measure_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "pony"]) == 2
    assert "--only: there is no 'pony'" in capsys.readouterr().err
    assert main(["bench", "--only", "machine", "--device", "toaster"]) == 2
    assert "device: toaster cannot be used here" in capsys.readouterr().err
    assert main(["bench", "--only", "learning", "--device", "cuda"]) == 2
    assert "(choices: machine, works, pictures)" in capsys.readouterr().err
    assert main(["bench", "-o", str(tmp_path / "bench.txt")]) == 2
    assert ".json" in capsys.readouterr().err


def test_a_table_has_a_cell_for_everything() -> None:
    rows = {"a": {"seconds": 1.5, "MB at most": 20}, "b": {"seconds": 2.0, "quartiles": [1.0, 3.0]}}
    told = report.table({"results": {"work": rows}})
    assert told.splitlines() == [
        "**work**", "", "| | seconds | MB at most | quartiles |", "|---|---:|---:|---:|",
        "| a | 1.5 | 20 |  |", "| b | 2.0 |  | 1.0 to 3.0 |",
    ]  # fmt: skip


def test_without_matplotlib_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(GradinaError, match="pip install matplotlib"):
        report.plot({"results": {}}, tmp_path / "a.png")
