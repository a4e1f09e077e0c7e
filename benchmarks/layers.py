"""Are our convolutions and linear layers quicker than oneDNN's with packed weights? Both in turns, in one run.

    python benchmarks/layers.py [--rounds 9]

3x3 convolutions and linear layers with a gate behind them, in single precision and in bfloat16, and linear layers
without one in bfloat16, each where we have our own; at the shapes that Stable Diffusion 1.5 has for a guided picture of
512x512. Prints a table as JSON: milliseconds, how many times quicker ours is (median and quartiles of the ratios), and
the error of each against 64 bits, as a share of what comes out (root mean square).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.bench.timing import Times, time_interleaved
from gradina.kernels.gemm import own_convolution, own_product
from gradina.kernels.prepacked import NOTHING_FUSED, PackedConv2d, PackedGate, PackedLinear, PackedThree, gated_by, pack
from gradina.nn.geglu import Gate, gated

# examples, channels in and out, side of the map
UNET = (
    (2, 320, 320, 64), (2, 640, 320, 64), (2, 960, 320, 64), (2, 640, 640, 64), (2, 640, 640, 32), (2, 1280, 640, 32),
    (2, 1920, 640, 32), (2, 1280, 1280, 32), (2, 1280, 1280, 16), (2, 2560, 1280, 16), (2, 1280, 1280, 8),
    (2, 2560, 1280, 8),
)  # fmt: skip
DECODER = ((1, 512, 512, 64), (1, 512, 512, 128), (1, 256, 256, 256), (1, 128, 128, 512))
# rows, numbers in and out
LINEAR = (
    (8192, 320, 320), (8192, 1280, 320), (2048, 640, 640), (2048, 2560, 640), (512, 1280, 1280), (512, 5120, 1280),
    (154, 768, 1280), (2, 1280, 1280),
)  # fmt: skip
GATES = ((8192, 320, 2560), (2048, 640, 5120), (512, 1280, 10240))

Way = Callable[[Tensor], Tensor]


def raced(shape: tuple[int, ...], ways: dict[str, Way], exact: Way, x: Tensor, rounds: int) -> dict[str, object]:
    """A row: ours and oneDNN's, over x; errors over its first example, or its first rows."""
    ours, theirs = time_interleaved({name: partial(way, x) for name, way in ways.items()}, rounds).values()
    assert isinstance(ours, Times), ours
    assert isinstance(theirs, Times), theirs
    ratios, some = ours.ratios(theirs), x[: max(1, len(x) // 2)]
    row: dict[str, object] = {
        "shape": shape,
        "ours, ms": round(1000 * ours.median, 2),
        "oneDNN, ms": round(1000 * theirs.median, 2),
        "oneDNN / ours": [round(x, 2) for x in (ratios.median, *ratios.quartiles)],
    }
    wanted = exact(some.double())
    for name, way in ways.items():
        row[f"{name}, error"] = float(f"{(way(some) - wanted).norm() / wanted.norm():.2e}")
    return row


def convolved(shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[str, object]:
    """A row for a 3x3 convolution."""
    b, channels, out, side = shape
    ways: dict[str, Way] = {}
    plain = nn.Conv2d(channels, out, 3, padding=1, dtype=dtype).requires_grad_(False)
    for name, kind in (("ours", PackedThree), ("oneDNN", PackedConv2d)):
        layer = nn.Conv2d(channels, out, 3, padding=1, dtype=dtype).requires_grad_(False)
        layer.load_state_dict(plain.state_dict())
        pack(layer, kind)
        ways[name] = layer
    x = torch.randn(b, channels, side, side).to(dtype, memory_format=torch.channels_last)
    return raced(shape, ways, plain.double(), x, rounds)


def multiplied(shape: tuple[int, int, int], dtype: torch.dtype, gates: bool, rounds: int) -> dict[str, object]:
    """A row for a linear layer, or for one and its gate."""
    rows, width, out = shape
    plain = (Gate if gates else nn.Linear)(width, out, dtype=dtype).requires_grad_(False)
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def theirs(x: Tensor) -> Tensor:
        made = torch.ops.mkldnn._linear_pointwise(x, ordered, bias, *NOTHING_FUSED)
        return gated(made) if gates else made

    def exact(x: Tensor) -> Tensor:
        made = F.linear(x, weight.double(), bias.double())
        h, gate = made.tensor_split(2, -1)
        return h * F.gelu(gate) if gates else made

    pack(plain, PackedGate if gates else PackedLinear)
    ways: dict[str, Way] = {"ours": (lambda x: gated_by(plain, x)) if gates else plain, "oneDNN": theirs}
    return raced(shape, ways, exact, torch.randn(rows, width).to(dtype), rounds)


@torch.no_grad()
def main() -> None:
    """Times, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of both, in turns (default: 9)")
    rounds = parser.parse_args().rounds
    told: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        if own_convolution(dtype):
            for name, shapes in (("U-Net", UNET), ("decoder", DECODER)):
                told[f"{name}'s convolutions, {kind}"] = [convolved(shape, dtype, rounds) for shape in shapes]
        for name, gates, layers in (("linear layers", False, LINEAR), ("linear layers and their gates", True, GATES)):
            if own_product(dtype, gates):
                told[f"{name}, {kind}"] = [multiplied(shape, dtype, gates, rounds) for shape in layers]
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
