"""Whole processes: from disk to a picture, with the memory that it takes; imports; the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradina.bench.machine import kinds
from gradina.bench.timing import Failed
from gradina.errors import GradinaError
from gradina.weights.formats.diffusers_layout import SETTINGS
from gradina.weights.registry import DEFAULT, shipped

IMPORTS = {
    "gradina": "import gradina",
    "torch": "import torch",
    "diffusers": "from diffusers import StableDiffusionPipeline",
}

# Each takes folder, dtype, size, steps, device, and says when the model was loaded, the first step taken, the picture
# there, and with CUDA how much of its memory it took at most.
DRAW = {
    "gradina": """
import json, sys, time
import gradina, torch
folder, dtype, size, steps, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
def now():
    if device != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
start = now()
model = gradina.load(folder, device=device, dtype=dtype, low_memory="low-memory" in sys.argv)
loaded, first = now(), None
request = gradina.Request(prompt="a lighthouse", steps=steps, guidance_scale=7.5, width=size, height=size, seed=1)
for step in gradina.steps(model, request):
    first = first or now()
model.decode(step.denoised)
told = {"load": loaded - start, "first step": first - start, "picture": now() - start}
print(json.dumps(told | ({"MB there": torch.cuda.max_memory_allocated() / 1e6} if device == "cuda" else {})))
""",
    "diffusers": """
import json, sys, time
import torch
from diffusers import StableDiffusionPipeline
folder, dtype, size, steps, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
def now():
    if device != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
start = now()
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=kind, safety_checker=None).to(device)
pipe.set_progress_bar_config(disable=True)
loaded, first = now(), []
def note(pipe, i, t, values):
    first.append(now())
    return values
pipe("a lighthouse", num_inference_steps=steps, guidance_scale=7.5, width=size, height=size, callback_on_step_end=note,
     generator=torch.Generator().manual_seed(1))
told = {"load": loaded - start, "first step": first[0] - start, "picture": now() - start}
print(json.dumps(told | ({"MB there": torch.cuda.max_memory_allocated() / 1e6} if device == "cuda" else {})))
""",
}


@dataclass(frozen=True)
class Taken:
    """What a process took: seconds, the most memory that it held, in MB, and what it said."""

    seconds: float
    megabytes: float
    said: str

    @property
    def told(self) -> dict[str, Any]:
        """The JSON that it said."""
        found: dict[str, Any] = json.loads(self.said.splitlines()[-1])
        return found


# A small process in between: the most memory that a process held is counted from the one that started it
LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""


def run(arguments: Sequence[str]) -> Taken:
    """Runs a process to its end. Raises GradinaError with its last words if it fails."""
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCH, *arguments], capture_output=True, text=True, check=True)
    said, _, last = done.stdout.strip().rpartition("\n")
    seconds, most, status = json.loads(last)
    if status:
        raise GradinaError(f"{' '.join(arguments[:3])[:80]}: {done.stderr[-400:]}")
    return Taken(seconds, most * (1 if sys.platform == "darwin" else 1024) / 1e6, said)


def python(script: str, *arguments: str) -> Taken:
    """Runs a script in a fresh interpreter."""
    return run([sys.executable, "-c", script, *arguments])


def installed(names: Mapping[str, str]) -> dict[str, str]:
    """The scripts of packages that are there."""
    return {name: script for name, script in names.items() if find_spec(name)}


def cold(rounds: int) -> dict[str, list[Taken] | Failed]:
    """From a cold command line to a PNG with the shipped model, in turns with the same by diffusers."""
    folder = shipped()[DEFAULT]
    with tempfile.TemporaryDirectory() as room:
        ours = [
            sys.executable,
            "-m",
            "gradina.apps.cli.main",
            "a lighthouse",
            "-o",
            str(Path(room) / "a.png"),
            "--quiet",
        ]
        ours += ["--device", "cpu"]
        runs = {"gradina": ours}
        if find_spec("diffusers"):
            runs["diffusers"] = [sys.executable, "-c", COLD, str(folder), str(Path(room) / "b.png"), *_defaults()]
        return _in_turns({name: partial(run, arguments) for name, arguments in runs.items()}, rounds)


COLD = """
import sys
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
drawn = pipe("a lighthouse", num_inference_steps=int(sys.argv[3]), guidance_scale=float(sys.argv[4]))
drawn.images[0].save(sys.argv[2])
"""


def _defaults() -> tuple[str, str]:
    said = json.loads((shipped()[DEFAULT] / SETTINGS).read_text(encoding="utf-8"))["defaults"]
    return str(said["steps"]), str(said["guidance_scale"])


def _in_turns(runs: Mapping[str, Callable[[], Taken]], rounds: int, warm: int = 1) -> dict[str, list[Taken] | Failed]:
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    failed: dict[str, Failed] = {}
    for turn in range(warm + rounds):  # the first fills the caches
        for name in (n for n in runs if n not in failed):
            try:
                result = runs[name]()
            except GradinaError as error:
                failed[name] = Failed.of(error)
            else:
                taken[name] += [result] if turn >= warm else []
    return {name: failed.get(name) or taken[name] for name in runs}


def imports(rounds: int) -> dict[str, list[Taken] | Failed]:
    """How long imports take, in turns."""
    return _in_turns({name: partial(python, script) for name, script in installed(IMPORTS).items()}, rounds)


def pictures(folder: Path, size: int, steps: int, rounds: int, device: str = "cpu") -> dict[str, list[Taken] | Failed]:
    """Whole pictures from disk, by everyone in every type of numbers, in turns, after one of few steps by each."""

    def runs(steps: int) -> dict[str, Callable[[], Taken]]:
        found: dict[str, Callable[[], Taken]] = {}
        for name, script in installed(DRAW).items():
            for dtype in kinds(device):
                found[f"{name} {dtype}"] = partial(python, script, str(folder), dtype, str(size), str(steps), device)
        if device == "cpu":
            lean = partial(python, DRAW["gradina"], str(folder), "bf16", str(size), str(steps), device, "low-memory")
            found["gradina bf16, --low-memory"] = lean
        return found

    _in_turns(runs(2), rounds=1, warm=0)
    return _in_turns(runs(steps), rounds, warm=0)
