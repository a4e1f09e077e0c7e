"""Are the native convolutions and linear layers faster than oneDNN's with prepacked weights? Interleaved in one run.

    python benchmarks/layers.py [--rounds 9]

3x3 convolutions and linear layers with a GEGLU behind them, in fp32 and bf16, and linear layers without one in bf16,
each where there is a native kernel; at the shapes that Stable Diffusion 1.5 has for a guided picture of 512x512. Prints
a table as JSON: milliseconds, the speed-up (median and quartiles of the ratios), and the error of each against fp64,
relative to the output (root mean square).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.bench.timing import Times, time_interleaved
from gradina.kernels.dispatch import available
from gradina.kernels.prepack import CONV3X3, GEGLU, LINEAR, ONEDNN_LINEAR, PackedWeight, onednn_conv
from gradina.nn.conv import Conv2d
from gradina.nn.linear import Linear
from gradina.nn.ops import geglu, linear_geglu

# examples, channels in and out, side of the map
UNET = (
    (2, 320, 320, 64), (2, 640, 320, 64), (2, 960, 320, 64), (2, 640, 640, 64), (2, 640, 640, 32), (2, 1280, 640, 32),
    (2, 1920, 640, 32), (2, 1280, 1280, 32), (2, 1280, 1280, 16), (2, 2560, 1280, 16), (2, 1280, 1280, 8),
    (2, 2560, 1280, 8),
)  # fmt: skip
DECODER = ((1, 512, 512, 64), (1, 512, 512, 128), (1, 256, 256, 256), (1, 128, 128, 512))
# rows, features in and out
LINEARS = (
    (8192, 320, 320), (8192, 1280, 320), (2048, 640, 640), (2048, 2560, 640), (512, 1280, 1280), (512, 5120, 1280),
    (154, 768, 1280), (2, 1280, 1280),
)  # fmt: skip
GATES = ((8192, 320, 2560), (2048, 640, 5120), (512, 1280, 10240))

Layer = Callable[[Tensor], Tensor]


def compare(
    shape: tuple[int, ...], layers: dict[str, Layer], exact: Layer, x: Tensor, rounds: int
) -> dict[str, object]:
    """A row: ours and oneDNN's on x; errors on its first example, or first half of the rows."""
    ours, theirs = time_interleaved({name: partial(layer, x) for name, layer in layers.items()}, rounds).values()
    assert isinstance(ours, Times), ours
    assert isinstance(theirs, Times), theirs
    ratios, inputs = ours.ratios(theirs), x[: max(1, len(x) // 2)]
    row: dict[str, object] = {
        "shape": shape,
        "ours, ms": round(1000 * ours.median, 2),
        "oneDNN, ms": round(1000 * theirs.median, 2),
        "oneDNN / ours": [round(x, 2) for x in (ratios.median, *ratios.quartiles)],
    }
    expected = exact(inputs.double())
    for name, layer in layers.items():
        row[f"{name}, error"] = float(f"{(layer(inputs) - expected).norm() / expected.norm():.2e}")
    return row


def convolution(shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[str, object]:
    """A row for a 3x3 convolution."""
    b, channels, out, side = shape
    layers: dict[str, Layer] = {}
    plain = nn.Conv2d(channels, out, 3, padding=1, dtype=dtype).requires_grad_(False)
    for name, order in (("ours", CONV3X3), ("oneDNN", onednn_conv(plain))):
        layers[name] = layer = Conv2d(channels, out, 3, padding=1, dtype=dtype).requires_grad_(False)
        layer.load_state_dict(plain.state_dict())
        layer.weight = cast(nn.Parameter, PackedWeight(layer.weight, order))
    x = torch.randn(b, channels, side, side).to(dtype, memory_format=torch.channels_last)
    return compare(shape, layers, plain.double(), x, rounds)


def linear_layer(shape: tuple[int, int, int], dtype: torch.dtype, gated: bool, rounds: int) -> dict[str, object]:
    """A row for a linear layer, or for one and its GEGLU."""
    rows, width, out = shape
    plain = nn.Linear(width, out, dtype=dtype).requires_grad_(False)
    layers: dict[str, Layer] = {}
    for name, order in (("ours", GEGLU if gated else LINEAR), ("oneDNN", ONEDNN_LINEAR)):
        layer = Linear(width, out, dtype=dtype).requires_grad_(False)
        layer.load_state_dict(plain.state_dict())
        layer.weight = cast(nn.Parameter, PackedWeight(layer.weight, order))
        layers[name] = partial(linear_geglu, layer) if gated else layer

    def exact(x: Tensor) -> Tensor:
        h = F.linear(x, plain.weight.double(), plain.bias.double())
        return geglu(h) if gated else h

    return compare(shape, layers, exact, torch.randn(rows, width).to(dtype), rounds)


@torch.no_grad()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of both, interleaved (default: 9)")
    rounds = parser.parse_args().rounds
    report: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        if available("conv2d", dtype, CONV3X3.name):
            for name, shapes in (("U-Net", UNET), ("decoder", DECODER)):
                report[f"{name}'s convolutions, {kind}"] = [convolution(shape, dtype, rounds) for shape in shapes]
        if available("linear", dtype, LINEAR.name):
            report[f"linear layers, {kind}"] = [linear_layer(shape, dtype, False, rounds) for shape in LINEARS]
        if available("linear_geglu", dtype, GEGLU.name):
            report[f"linear layers and their gates, {kind}"] = [
                linear_layer(shape, dtype, True, rounds) for shape in GATES
            ]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
