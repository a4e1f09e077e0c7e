"""Native attention against PyTorch's fused kernel, interleaved in one run, for training and for inference.

    python benchmarks/attention.py [--rounds 15]

Times forward and backward at the shapes of the shipped recipes, and the forward at those of Stable Diffusion; prints a
table as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from gradina.bench.timing import Times
from gradina.kernels.bindings import SoftmaxKernel, native
from gradina.kernels.dispatch import SHORT
from gradina.kernels.operations import matmul_attention
from gradina.nn.ops import attention

# batch, heads, queries, keys, head dimension
TRAINING = ((32, 6, 64, 64, 32), (32, 6, 64, 24, 32), (32, 8, 16, 16, 32), (128, 3, 33, 33, 64), (32, 3, 256, 256, 32))
INFERENCE = {
    "SD 1.5": ((2, 8, 4096, 4096, 40), (2, 8, 1024, 1024, 80), (2, 8, 256, 256, 160), (2, 8, 64, 64, 160)),
    "SD 1.5, words": ((2, 8, 4096, 77, 40), (2, 8, 1024, 77, 80), (2, 8, 256, 77, 160)),
    "SD 2.1": ((2, 5, 4096, 4096, 64), (2, 10, 1024, 1024, 64), (2, 20, 256, 256, 64)),
    "SD XL": ((2, 10, 4096, 4096, 64), (2, 20, 1024, 1024, 64)),
    "autoencoder": ((1, 1, 4096, 4096, 512),),
}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Timed = Callable[[Attention, tuple[int, ...], torch.dtype], float]
Row = dict[str, object]


def random_qkv(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """q, k and v in the layout of a layer: (batch, tokens, heads, d) in memory."""
    b, heads, n, m, d = shape
    return [torch.randn(b, x, heads, d, dtype=dtype).transpose(1, 2) for x in (n, m, m)]


def forward_backward(attend: Attention, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Seconds of one forward and backward."""
    inputs = [x.requires_grad_() for x in random_qkv(shape, dtype)]
    start = time.perf_counter()
    out = attend(*inputs)
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


@torch.no_grad()
def forward(attend: Attention, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Seconds of one forward."""
    inputs = random_qkv(shape, dtype)
    start = time.perf_counter()
    attend(*inputs)
    return time.perf_counter() - start


def compare(timed: Timed, ours: Attention, shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> Row:
    """A row: both interleaved, medians and quartiles in milliseconds."""
    times = {"ours": list[float](), "fused": list[float]()}
    for _ in range(rounds + 2):
        times["ours"].append(timed(ours, shape, dtype))
        times["fused"].append(timed(F.scaled_dot_product_attention, shape, dtype))
    row: Row = {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
    native_times, fused_times = (Times(tuple(seconds[2:])) for seconds in times.values())
    for name, taken in (("ours", native_times), ("fused", fused_times)):
        row[f"{name}, ms"] = round(1000 * taken.median, 2)
        row[f"{name}, quartiles"] = [round(1000 * q, 2) for q in taken.quartiles]
    return row | {"fused / ours": round(native_times.ratios(fused_times).median, 2)}


@torch.no_grad()
def errors(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    """Root mean square error of each against fp64, over the first head."""
    q, k, v = (x[:1, :1] for x in random_qkv(shape, dtype))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    variants: dict[str, Attention] = {"ours": attention, "fused": F.scaled_dot_product_attention}
    return {
        f"{n}, error": float(f"{(attend(q, k, v) - exact).square().mean().sqrt():.2e}")
        for n, attend in variants.items()
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of each, interleaved (default: 15)")
    rounds = parser.parse_args().rounds
    learning, drawing = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in TRAINING:
            chosen = "ours" if dtype == torch.bfloat16 and shape[2] * shape[3] <= SHORT else "fused"
            matmul = partial(matmul_attention, native(SoftmaxKernel, dtype))
            learning.append(compare(forward_backward, matmul, shape, dtype, rounds) | {"chosen": chosen})
        for model, shapes in INFERENCE.items():
            for shape in shapes:
                row = compare(forward, attention, shape, dtype, rounds) | errors(shape, dtype)
                drawing.append({"model": model} | row)
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "learning": learning, "drawing": drawing}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
