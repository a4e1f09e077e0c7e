"""How much memory does Stable Diffusion's decoder take, and does computing large feature maps in chunks leave seams?

    python benchmarks/decoding.py

Decodes random latents with random weights, each size and dtype in a process of its own, on Linux. Prints and writes
`benchmarks/decoding.json`: peak memory in GB, in all and above what was held before; seconds; and by how many grey
levels, of 255, the picture differs from one decoded without chunks, at most and on average. In bf16 rounding differs;
in fp32 a seam would show.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from gradina.models.vae import AutoencoderKL
from gradina.nn import ops
from gradina.runtime.device import DTYPES
from gradina.runtime.prepack import prepack
from gradina.weights.families import FAMILIES

SIDES, DTYPE_NAMES = (512, 1024), ("bf16", "fp32")
UNLIMITED = 2**40  # elements: more than any feature map has


def memory_gb(field: str) -> float:
    """Memory of this process in GB, by the field of /proc: VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024e-9 * next(int(line.split()[1]) for line in status if line.startswith(field))


@torch.inference_mode()
def measure(side: int, dtype: str) -> dict[str, float]:
    """Decodes one picture in this process."""
    torch.manual_seed(0)
    vae = prepack(AutoencoderKL(FAMILIES["sd1"].vae).to(DTYPES[dtype]).eval().requires_grad_(False))
    latents = torch.randn(1, 4, side // 8, side // 8).to(DTYPES[dtype])
    before, start = memory_gb("VmRSS"), time.perf_counter()
    pixels = vae.decode(latents).float()[0]
    seconds, peak = time.perf_counter() - start, memory_gb("VmHWM")
    ops.LARGE = ops.LARGE_NATIVE = UNLIMITED
    whole = vae.decode(latents).float()[0]
    difference = 127.5 * (pixels.clamp(-1, 1) - whole.clamp(-1, 1)).abs()
    levels = {"levels at most": difference.max().item(), "levels in the mean": difference.mean().item()}
    report = {"GB at most": peak, "GB above": peak - before, "seconds": seconds, **levels}
    return {name: float(f"{value:.3g}") for name, value in report.items()}


def main() -> None:
    """Measures, prints and writes; or decodes one picture in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "TYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(int(options.one[0]), options.one[1])))
        return
    rows = {}
    for side in SIDES:
        for dtype in DTYPE_NAMES:
            command = [sys.executable, __file__, "--one", str(side), dtype]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[f"{side}x{side}, {dtype}"] = json.loads(done.stdout)
            print(f"{side}x{side}, {dtype}", rows[f"{side}x{side}, {dtype}"], flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
