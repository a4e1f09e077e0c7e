"""Is our attention quicker than torch's fused kernel? Both in turns, in one run, to learn with and to draw with.

    python benchmarks/attention.py [--rounds 15]

Times the way there and back at the shapes that the shipped recipes learn with, and the way there at those that Stable
Diffusion draws with, and prints a table as JSON.
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
from gradina.kernels.dispatch import SHORT, matmul_attention
from gradina.nn.ops import attention

# batch, heads, tokens, tokens looked at, width of a head
LEARNING = ((32, 6, 64, 64, 32), (32, 6, 64, 24, 32), (32, 8, 16, 16, 32), (128, 3, 33, 33, 64), (32, 3, 256, 256, 32))
DRAWING = {
    "SD 1.5": ((2, 8, 4096, 4096, 40), (2, 8, 1024, 1024, 80), (2, 8, 256, 256, 160), (2, 8, 64, 64, 160)),
    "SD 1.5, words": ((2, 8, 4096, 77, 40), (2, 8, 1024, 77, 80), (2, 8, 256, 77, 160)),
    "SD 2.1": ((2, 5, 4096, 4096, 64), (2, 10, 1024, 1024, 64), (2, 20, 256, 256, 64)),
    "SD XL": ((2, 10, 4096, 4096, 64), (2, 20, 1024, 1024, 64)),
    "autoencoder": ((1, 1, 4096, 4096, 512),),
}

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def given(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as a layer has them: heads behind the tokens in memory."""
    b, heads, n, m, d = shape
    return [torch.randn(b, x, heads, d, dtype=dtype).transpose(1, 2) for x in (n, m, m)]


def there_and_back(way: Way, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Seconds, once."""
    inputs = [x.requires_grad_() for x in given(shape, dtype)]
    start = time.perf_counter()
    out = way(*inputs)
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


@torch.no_grad()
def there(way: Way, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Seconds, once."""
    inputs = given(shape, dtype)
    start = time.perf_counter()
    way(*inputs)
    return time.perf_counter() - start


def raced(
    race: Callable[[Way, tuple[int, ...], torch.dtype], float], own: Way, shape: tuple[int, ...], dtype: torch.dtype,
    rounds: int,
) -> dict[str, object]:  # fmt: skip
    """A row: both ways in turns, medians and quartiles in milliseconds."""
    times = {"ours": list[float](), "fused": list[float]()}
    for _ in range(rounds + 2):
        times["ours"].append(race(own, shape, dtype))
        times["fused"].append(race(F.scaled_dot_product_attention, shape, dtype))
    row: dict[str, object] = {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
    ours, fused = (Times(tuple(seconds[2:])) for seconds in times.values())
    for name, taken in (("ours", ours), ("fused", fused)):
        row[f"{name}, ms"] = round(1000 * taken.median, 2)
        row[f"{name}, quartiles"] = [round(1000 * q, 2) for q in taken.quartiles]
    return row | {"fused / ours": round(ours.ratios(fused).median, 2)}


@torch.no_grad()
def errors(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    """Root mean square error of each way against 64 bits, over the first head."""
    q, k, v = (x[:1, :1] for x in given(shape, dtype))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    ways: dict[str, Way] = {"ours": attention, "fused": F.scaled_dot_product_attention}
    return {f"{n}, error": float(f"{(w(q, k, v) - exact).square().mean().sqrt():.2e}") for n, w in ways.items()}


def main() -> None:
    """Times, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of each way, in turns (default: 15)")
    rounds = parser.parse_args().rounds
    learning, drawing = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in LEARNING:
            chosen = "ours" if dtype == torch.bfloat16 and shape[2] * shape[3] <= SHORT else "fused"
            products = partial(matmul_attention, native(SoftmaxKernel, dtype))
            learning.append(raced(there_and_back, products, shape, dtype, rounds) | {"chosen": chosen})
        for model, shapes in DRAWING.items():
            for shape in shapes:
                row = raced(there, attention, shape, dtype, rounds) | errors(shape, dtype)
                drawing.append({"model": model} | row)
    told = {"torch": torch.__version__, "threads": torch.get_num_threads(), "learning": learning, "drawing": drawing}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
