"""Two checkouts of Gradina in turns on one machine: python benchmarks/checkouts.py OLD NEW [--turns 9] [--rows WORD...]

Each row runs in three processes, two of OLD and one of NEW, one at a time and in changing order. Printed are the
medians, the median of the paired ratios NEW / OLD and, as the noise, that of OLD / OLD; the results are
compared to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

SIZE = 512  # pixels of a picture of Stable Diffusion 1.5's shape
ROWS = (
    *(f"attention: {t} {shape}" for shape in ("2 8 4096 40", "2 8 1024 80", "2 8 256 160") for t in ("fp32", "bf16")),
    *(f"sd15: {work} {t}" for work in ("text encoder", "U-Net step", "decoder", "encoder") for t in ("fp32", "bf16")),
    *(f"picture: {name} {t}" for name in ("digits", "emoji") for t in ("fp32", "bf16")),
    *(f"openvino: emoji {t}" for t in ("fp32", "bf16")),
    *(f"training: {name} {t}" for name in ("digits", "emoji") for t in ("fp32", "bf16")),
    "process: import gradina",
    "process: import gradina; gradina.generate",
    "process: cold",
)
COLD = """import sys
try:
    from gradina.apps.cli.main import main
except ImportError:
    from gradina.apps.cli import main
sys.exit(main(["a teddy bear on a pink background", "--seed", "1", "--quiet", "--output", sys.argv[1]]))
"""


def runner(row: str, folder: str) -> Callable[[], Any]:
    """What is timed of a row, opened; it uses names alone that both checkouts have."""
    kind, _, rest = row.partition(": ")
    if kind == "process":
        target = os.path.join(tempfile.gettempdir(), f"checkouts-{os.getpid()}.png")
        command = [sys.executable, "-c", COLD if rest == "cold" else rest, target]
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    import torch

    import gradina

    key, rest, dtype = torch.Generator().manual_seed(0), *rest.rsplit(" ", 1)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if kind == "attention":
        attention = _either("gradina.nn.ops", "gradina.nn.attention").attention
        first, *shape = f"{rest} {dtype}".split()
        b, heads, n, width = map(int, shape)
        q, k, v = (torch.randn(b, n, heads, width, generator=key).to(types[first]).transpose(1, 2) for _ in range(3))
        return torch.inference_mode()(lambda: attention(q, k, v))
    if kind in ("picture", "openvino"):
        model = gradina.load(rest, dtype=dtype, engine="openvino" if kind == "openvino" else "auto")
        request = gradina.Request(prompt="a red car", seed=3, steps=20)
        return lambda: torch.tensor([[*p.image.tobytes()] for p in gradina.generate(model, request)])
    if kind == "training":
        from gradina.weights.registry import shipped

        steps = _either("gradina.bench.training_step", "gradina.bench.learning").gradina(shipped()[rest], dtype)
        return lambda: torch.tensor(next(steps))
    model, to, side = gradina.load(folder, dtype=dtype), types[dtype], SIZE // 8
    ids = torch.randint(49408, (2, 77), generator=key)
    states, t = torch.randn(2, 77, 768, generator=key).to(to), torch.full((2,), 500.0)
    z, pixels = (torch.randn(1, c, s, s, generator=key).to(to) for c, s in ((4, side), (3, SIZE)))
    works: dict[str, Callable[[], Any]] = {
        "text encoder": lambda: model.text(ids),
        "U-Net step": lambda: model.unet(z.expand(2, -1, -1, -1), t, states),
        "decoder": lambda: model.vae.decode(z),
        "encoder": lambda: model.vae.encode(pixels),
    }
    return torch.no_grad()(works[rest])


def _either(*names: str) -> Any:
    """The module that a checkout has, by its new or its old name."""
    return import_module(next(name for name in names if find_spec(name)))


def work(row: str, folder: str) -> None:
    """A worker: for each line that it reads it runs the row once, and writes the seconds and a hash of the result."""
    import torch

    run = runner(row, folder)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        data = result.detach().float().contiguous().numpy().tobytes() if isinstance(result, torch.Tensor) else b""
        print(f"{seconds} {hashlib.sha256(data).hexdigest()[:12]}", flush=True)


def write_model(checkout: Path, folder: str) -> None:
    """Writes a model of Stable Diffusion 1.5's shape with random weights."""
    code = "import sys; from pathlib import Path\ntry: from gradina.bench import workloads as w\nexcept ImportError: "
    code += "from gradina.bench import work as w\nw.write_model(w.sd15(512), Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, folder], check=True, env=environment(checkout))


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout / "src")}


def compare(row: str, checkouts: list[Path], folder: str, turns: int) -> str:
    """A line of the table."""
    command = [sys.executable, __file__, "--work", row, folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, env=environment(c), **pipes) for c in checkouts]  # type: ignore[call-overload]

    def ask(i: int) -> tuple[float, str]:
        workers[i].stdin.write("\n")
        workers[i].stdin.flush()
        seconds, _, digest = workers[i].stdout.readline().strip().partition(" ")
        return float(seconds), digest

    digests = [[ask(i)[1] for _ in range(2)] for i in range(len(workers))]  # and warms up
    took: list[list[float]] = [[] for _ in workers]
    for turn in range(turns):
        for i in range(len(workers)):
            took[(i + turn) % len(workers)].append(ask((i + turn) % len(workers))[0])
    for worker in workers:
        worker.communicate()
    old, new, again = took
    ratio, noise = (median(b / a for a, b in zip(old, other, strict=True)) for other in (new, again))
    same = "" if row.startswith("process") else "same bits" if digests[0] == digests[1] else "other bits"
    return f"{row:<42} {median(old):9.4f} {median(new):9.4f} {ratio:7.3f} {noise:7.3f}  {same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--rows", nargs="*", default=[""], help="only rows that contain one of these")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(asked.old, folder)
        print(f"{'row':<42} {'old s':>9} {'new s':>9} {'new/old':>7} {'old/old':>7}", flush=True)
        for row in ROWS:
            if any(word in row for word in asked.rows):
                print(compare(row, [asked.old, asked.new, asked.old], folder, asked.turns), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        with suppress(KeyboardInterrupt):
            work(*sys.argv[2:])
    else:
        main()
