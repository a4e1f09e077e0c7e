"""How much memory does Stable Diffusion's decoder take, and do the strips show in which it goes over large maps?

    python benchmarks/decoding.py

Decodes random latents with random weights, in each size and type of numbers in a process of its own, on Linux. Prints
and writes `benchmarks/decoding.json`: the most memory in GB, in all and above what was held before; seconds; and by how
many grey levels, of 255, the picture differs from the same in whole maps, at most and in the mean. In bf16 the same
numbers are rounded at other places; in fp32 a seam would show.
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

SIDES, TYPES = (512, 1024), ("bf16", "fp32")
WHOLE = 2**40  # numbers: no map has as many


def held(what: str) -> float:
    """GB of this process, by a name of /proc: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024e-9 * next(int(line.split()[1]) for line in status if line.startswith(what))


@torch.inference_mode()
def decoded(side: int, dtype: str) -> dict[str, float]:
    """One picture, here."""
    torch.manual_seed(0)
    vae = prepack(AutoencoderKL(FAMILIES["sd1"].vae).to(DTYPES[dtype]).eval().requires_grad_(False))
    latents = torch.randn(1, 4, side // 8, side // 8).to(DTYPES[dtype])
    before, start = held("VmRSS"), time.perf_counter()
    pixels = vae.decode(latents).float()[0]
    seconds, most = time.perf_counter() - start, held("VmHWM")
    ops.LARGE = ops.LARGE_NATIVE = WHOLE
    whole = vae.decode(latents).float()[0]
    apart = 127.5 * (pixels.clamp(-1, 1) - whole.clamp(-1, 1)).abs()
    levels = {"levels at most": apart.max().item(), "levels in the mean": apart.mean().item()}
    told = {"GB at most": most, "GB above": most - before, "seconds": seconds, **levels}
    return {name: float(f"{value:.3g}") for name, value in told.items()}


def main() -> None:
    """Measures, prints and writes; or, as its own helper, decodes one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "TYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(decoded(int(options.one[0]), options.one[1])))
        return
    rows = {}
    for side in SIDES:
        for dtype in TYPES:
            how = [sys.executable, __file__, "--one", str(side), dtype]
            done = subprocess.run(how, check=True, capture_output=True, text=True)
            rows[f"{side}x{side}, {dtype}"] = json.loads(done.stdout)
            print(f"{side}x{side}, {dtype}", rows[f"{side}x{side}, {dtype}"], flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
