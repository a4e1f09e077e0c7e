"""Which way of attention is quicker to learn through? Plain products beside torch's fused kernel, in turns, in one run.

    python benchmarks/attention.py [--rounds 15]

Times the way there and back at the shapes that the shipped recipes train with, and prints a table as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch.nn import functional as F

from gradina.nn.attention import SHORT, plain

# (batch, heads, tokens, tokens looked at, width of a head)
SHAPES = ((32, 6, 64, 64, 32), (32, 6, 64, 24, 32), (32, 8, 16, 16, 32), (128, 3, 33, 33, 64), (32, 3, 256, 256, 32))


def seconds(way: object, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """There and back, once."""
    b, heads, n, m, d = shape
    q, k, v = (torch.randn(b, x, heads, d, dtype=dtype).transpose(1, 2).requires_grad_() for x in (n, m, m))
    start = time.perf_counter()
    out = way(q, k, v)  # type: ignore[operator]
    out.backward(torch.ones_like(out))
    return time.perf_counter() - start


def main() -> None:
    """Times, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of each way, in turns (default: 15)")
    rounds = parser.parse_args().rounds
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            times: dict[str, list[float]] = {"plain": [], "fused": []}
            for _ in range(rounds + 2):
                times["plain"].append(seconds(plain, shape, dtype))
                times["fused"].append(seconds(F.scaled_dot_product_attention, shape, dtype))
            own, theirs = (1000 * statistics.median(times[name][2:]) for name in ("plain", "fused"))
            chosen = "plain" if dtype == torch.bfloat16 and shape[2] * shape[3] <= SHORT else "fused"
            rows.append(
                {
                    "shape": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "plain, ms": round(own, 2),
                    "fused, ms": round(theirs, 2),
                    "fused / plain": round(theirs / own, 2),
                    "chosen": chosen,
                }
            )
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
