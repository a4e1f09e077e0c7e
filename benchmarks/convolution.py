"""Is our 3x3 convolution quicker than oneDNN's with packed weights? Both in turns, in one run, in single precision.

    python benchmarks/convolution.py [--rounds 9]

At the shapes that Stable Diffusion 1.5 convolves for a guided picture of 512x512. Prints a table as JSON: milliseconds,
how many times quicker ours is (median and quartiles of the ratios), and the error of each against 64 bits, as a share
of what comes out (root mean square).
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch
from torch import Tensor, nn

from gradina.bench.race import Times, race
from gradina.nn.packed import PackedConv2d, PackedThree, pack

# examples, channels in and out, side of the map
UNET = (
    (2, 320, 320, 64), (2, 640, 320, 64), (2, 960, 320, 64), (2, 640, 640, 64), (2, 640, 640, 32), (2, 1280, 640, 32),
    (2, 1920, 640, 32), (2, 1280, 1280, 32), (2, 1280, 1280, 16), (2, 2560, 1280, 16), (2, 1280, 1280, 8),
    (2, 2560, 1280, 8),
)  # fmt: skip
DECODER = ((1, 512, 512, 64), (1, 512, 512, 128), (1, 256, 256, 256), (1, 128, 128, 512))


def error(got: Tensor, exact: Tensor) -> float:
    """As a share of what is exact."""
    return float(f"{(got - exact).norm() / exact.norm():.2e}")


def raced(shape: tuple[int, int, int, int], rounds: int) -> dict[str, object]:
    """A row."""
    b, channels, out, side = shape
    plain = nn.Conv2d(channels, out, 3, padding=1).requires_grad_(False)
    x = torch.randn(b, channels, side, side).to(memory_format=torch.channels_last)
    layers = {"ours": PackedThree, "oneDNN": PackedConv2d}
    ways = {}
    for name, kind in layers.items():
        layer = nn.Conv2d(channels, out, 3, padding=1).requires_grad_(False)
        layer.load_state_dict(plain.state_dict())
        pack(layer, kind)
        ways[name] = layer
    ours, theirs = race({name: partial(layer, x) for name, layer in ways.items()}, rounds).values()
    assert isinstance(ours, Times), ours
    assert isinstance(theirs, Times), theirs
    ratios = ours.beside(theirs)
    row: dict[str, object] = {
        "examples, channels in and out, side": shape,
        "ours, ms": round(1000 * ours.median, 2),
        "oneDNN, ms": round(1000 * theirs.median, 2),
        "oneDNN / ours": [round(x, 2) for x in (ratios.median, *ratios.quartiles)],
    }
    exact = plain.double()(x[:1].double())
    return row | {f"{name}, error": error(layer(x[:1]), exact) for name, layer in ways.items()}


@torch.no_grad()
def main() -> None:
    """Times, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of both, in turns (default: 9)")
    rounds = parser.parse_args().rounds
    told: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name, shapes in (("U-Net", UNET), ("decoder", DECODER)):
        told[name] = [raced(shape, rounds) for shape in shapes]
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
