"""Fresh processes: from disk to a picture, with peak memory; imports; a cold command line."""

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

from gradina.bench.machine import dtypes
from gradina.bench.timing import Failed
from gradina.errors import GradinaError
from gradina.weights.formats.diffusers_layout import SETTINGS
from gradina.weights.registry import DEFAULT, shipped

IMPORTS = {
    "gradina": "import gradina",
    "torch": "import torch",
    "diffusers": "from diffusers import StableDiffusionPipeline",
}

# Arguments: folder, dtype, size, steps, device. Prints as JSON the seconds until the model is loaded, the first step is
# done and the picture is done; on CUDA also the peak memory of the device.
_HEADER = """
import json, sys, time
import torch
folder, dtype, size, steps, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
def now():
    if device != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
"""
_FOOTER = """
result = {"load": loaded - start, "first step": first[0] - start, "picture": now() - start}
print(json.dumps(result | ({"MB there": torch.cuda.max_memory_allocated() / 1e6} if device == "cuda" else {})))
"""
_GRADINA = """
import gradina
start = now()
model = gradina.load(folder, device=device, dtype=dtype, low_memory="low-memory" in sys.argv)
loaded, first = now(), []
request = gradina.Request(prompt="a lighthouse", steps=steps, guidance_scale=7.5, width=size, height=size, seed=1)
for step in gradina.steps(model, request):
    first = first or [now()]
model.decode(step.denoised)
"""
_DIFFUSERS = """
from diffusers import StableDiffusionPipeline
torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
start = now()
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch_dtype, safety_checker=None).to(device)
pipe.set_progress_bar_config(disable=True)
loaded, first = now(), []
def on_step_end(pipe, i, t, values):
    first.append(now())
    return values
pipe("a lighthouse", num_inference_steps=steps, guidance_scale=7.5, width=size, height=size,
     callback_on_step_end=on_step_end, generator=torch.Generator().manual_seed(1))
"""
PICTURE = {name: _HEADER + script + _FOOTER for name, script in (("gradina", _GRADINA), ("diffusers", _DIFFUSERS))}


@dataclass(frozen=True)
class ProcessResult:
    """Seconds, peak memory in MB and output of a process."""

    seconds: float
    megabytes: float
    stdout: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of the output."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found


Results = dict[str, list[ProcessResult] | Failed]

# A small process in between: on Linux the peak memory of a process starts from that of its parent.
LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""


def run(arguments: Sequence[str]) -> ProcessResult:
    """Runs a process to its end. Raises GradinaError with the end of its stderr if it fails."""
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCH, *arguments], capture_output=True, text=True, check=True)
    stdout, _, usage = done.stdout.strip().rpartition("\n")
    seconds, peak, status = json.loads(usage)
    if status:
        raise GradinaError(f"{' '.join(arguments[:3])[:80]}: {done.stderr[-400:]}")
    return ProcessResult(seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e6, stdout)


def run_python(script: str, *arguments: str) -> ProcessResult:
    """Runs a script in a fresh interpreter."""
    return run([sys.executable, "-c", script, *arguments])


def installed(scripts: Mapping[str, str]) -> dict[str, str]:
    """The scripts whose package is installed."""
    return {name: script for name, script in scripts.items() if find_spec(name)}


COLD_DIFFUSERS = """
import sys
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
result = pipe("a lighthouse", num_inference_steps=int(sys.argv[3]), guidance_scale=float(sys.argv[4]))
result.images[0].save(sys.argv[2])
"""


def cold_start(rounds: int) -> Results:
    """From a cold command line to a PNG with the shipped model, interleaved with the same by diffusers."""
    folder = shipped()[DEFAULT]
    defaults = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["defaults"]
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = (str(Path(temporary) / name) for name in ("a.png", "b.png"))
        options = ["a lighthouse", "-o", ours, "--quiet", "--device", "cpu"]
        runs = {"gradina": partial(run, [sys.executable, "-m", "gradina.apps.cli.main", *options])}
        if find_spec("diffusers"):
            settings = str(defaults["steps"]), str(defaults["guidance_scale"])
            runs["diffusers"] = partial(run_python, COLD_DIFFUSERS, str(folder), theirs, *settings)
        return _interleaved(runs, rounds)


def _interleaved(runs: Mapping[str, Callable[[], ProcessResult]], rounds: int, warmup: int = 1) -> Results:
    results: dict[str, list[ProcessResult]] = {name: [] for name in runs}
    failed: dict[str, Failed] = {}
    for i in range(warmup + rounds):  # the first fills the file cache
        for name in (n for n in runs if n not in failed):
            try:
                result = runs[name]()
            except GradinaError as error:
                failed[name] = Failed.of(error)
            else:
                results[name] += [result] if i >= warmup else []
    return {name: failed.get(name) or results[name] for name in runs}


def imports(rounds: int) -> Results:
    """The import of each package, interleaved."""
    return _interleaved({name: partial(run_python, script) for name, script in installed(IMPORTS).items()}, rounds)


def pictures(folder: Path, size: int, steps: int, rounds: int, device: str = "cpu") -> Results:
    """Whole pictures from disk, by all backends and dtypes, interleaved, after a warmup of two steps."""

    def runs(steps: int) -> dict[str, Callable[[], ProcessResult]]:
        def picture(name: str, dtype: str, *options: str) -> Callable[[], ProcessResult]:
            return partial(run_python, PICTURE[name], str(folder), dtype, str(size), str(steps), device, *options)

        found = {f"{name} {dtype}": picture(name, dtype) for name in installed(PICTURE) for dtype in dtypes(device)}
        if device == "cpu":
            found["gradina bf16, --low-memory"] = picture("gradina", "bf16", "low-memory")
        return found

    _interleaved(runs(2), rounds=1, warmup=0)
    return _interleaved(runs(steps), rounds, warmup=0)
