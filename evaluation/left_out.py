"""Which shortcuts are not worth a place? Token merging, and whole numbers of 8 bits.

    python evaluation/left_out.py [--rounds 7]

Each is tried on the shipped model (seconds for one picture of 20 steps, and likeness to the exact picture in dB, the
median of some) and on a U-Net of Stable Diffusion 1.5's shape with random weights (seconds for one guided step at
512x512), in turns with the exact way and with `reuse`. PyTorch has linear layers in 8 bits, but no convolutions that
round what they are given as it comes; so those of that U-Net are timed by themselves, on numbers that were rounded
before: the most that they could save. Prints and writes `evaluation/left-out.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradina
from gradina.adapters.inject import inject, shallow_clone
from gradina.bench.timing import Runner, medians
from gradina.bench.workloads import sd15, write_model
from gradina.kernels.prepack import PackedWeight, onednn_conv
from gradina.models.deepcache import DeepCache
from gradina.models.unet import UNet
from gradina.nn.conv import Conv2d
from gradina.pipeline.model import StableDiffusion, to_pixels
from gradina.tasks.metrics import psnr

ROOT = Path(__file__).parent.parent
PROMPTS = tuple(f"{thing} on a pink background" for thing in ("a teddy bear", "a red apple", "a crown", "a rocket"))
MERGED = 0.5  # share of the tokens that are merged into others
SIZE = 512  # pixels of Stable Diffusion's


class Merging(nn.Module):
    """Self-attention in which tokens that are much alike take part as one.

    Source: Bolya & Hoffman, "Token Merging for Fast Stable Diffusion" (2303.17604), section 3: of each 2x2 places one
    is a target; the tokens elsewhere that are most like a target join it, and get a copy of what it finds.
    """

    def __init__(self, attention: nn.Module, share: float) -> None:
        super().__init__()
        self.attention, self.share = attention, share

    def forward(self, x: Tensor, context: None = None, beside: Tensor | None = None) -> Tensor:
        """x (b, n, width) of a square map -> the same, plus what is `beside` it."""
        places = torch.arange(x.shape[1]).view(isqrt(x.shape[1]), -1)
        target = torch.zeros_like(places, dtype=torch.bool)
        target[::2, ::2] = True
        others, targets = x[:, places[~target]], x[:, places[target]]
        like = F.normalize(others, dim=-1) @ F.normalize(targets, dim=-1).mT
        most, which = like.max(dim=-1)
        order = most.argsort(dim=-1, descending=True)
        count = round(self.share * x.shape[1])
        joining, alone = order[:, :count], order[:, count:]
        into = which.gather(1, joining)
        targets = targets.scatter_reduce(1, _wide(into, x), _rows(others, joining), "mean")
        found = self.attention(torch.cat([_rows(others, alone), targets], dim=1))
        of_alone, of_targets = found[:, : alone.shape[1]], found[:, alone.shape[1] :]
        of_others = torch.empty_like(others).scatter_(1, _wide(alone, x), of_alone)
        of_others.scatter_(1, _wide(joining, x), _rows(of_targets, into))
        out = torch.empty_like(x)
        out[:, places[~target]], out[:, places[target]] = of_others, of_targets
        return out if beside is None else out + beside


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _wide(index, x))


def merging(unet: UNet) -> UNet:
    """The same network, tokens merged where there are most of them: at the finest maps that have attention."""
    unet, level = shallow_clone(unet), unet.config.attention.index(True)
    where = (f"down.{level}.", f"up.{len(unet.config.widths) - 1 - level}.")
    layers = {n: Merging(m, MERGED) for n, m in unet.named_modules() if n.startswith(where) and n.endswith("self_attn")}
    inject(unet, layers)
    return unet


def in_eight_bits(unet: UNet) -> UNet:
    """The linear layers of a plain network's transformers in 8 bits, what they are given rounded as it comes."""
    names = {name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and ".blocks." in name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(unet), names, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return cast(UNet, small)


def convolutions(unet: UNet, run: Runner) -> Counter[tuple[int, ...]]:
    """How often a run convolves 3x3 places: for each number of channels in and out, step, batch, height and width."""
    found: Counter[tuple[int, ...]] = Counter()

    def note(layer: nn.Module, given: tuple[Tensor], _: Tensor) -> None:
        conv = cast(nn.Conv2d, layer)
        if conv.kernel_size == (3, 3) and min(conv.weight.shape[:2]) > 4:
            b, channels, h, w = given[0].shape
            found[(channels, conv.out_channels, conv.stride[0], b, h, w)] += 1

    hooks = [layer.register_forward_hook(note) for layer in unet.modules() if isinstance(layer, nn.Conv2d)]
    run()
    for hook in hooks:
        hook.remove()
    return found


def convolvers(shape: tuple[int, ...]) -> dict[str, Runner]:
    """One convolution in bf16, packed, and in 8 bits, of what is rounded already."""
    channels, out, step, b, h, w = shape
    how: tuple[Any, ...] = ([step, step], [1, 1], [1, 1], 1)
    x = torch.randn(b, channels, h, w).to(memory_format=torch.channels_last)
    weight = torch.randn(out, channels, 3, 3)
    conv = Conv2d(channels, out, 3, step, 1, bias=False).bfloat16().requires_grad_(False)
    conv.weight = cast(nn.Parameter, PackedWeight(conv.weight, onednn_conv(conv)))
    scale, scales = 8 / 255, weight.abs().amax((1, 2, 3)) / 127
    rounded = (x / scale + 128).round().clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    small = (weight / scales[:, None, None, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(small, scales, scale, 128, *how, list(x.shape))
    zeros, half = torch.zeros(out, dtype=torch.int64), x.bfloat16()
    after: tuple[Any, ...] = (1.0, 0, torch.bfloat16, "none", [], "")
    return {
        "bf16": lambda: conv(half),
        "8 bits": lambda: torch.ops.onednn.qconv_pointwise(
            rounded, scale, 128, packed, scales, zeros, None, *how, *after
        ),
    }


@torch.inference_mode()
def of_the_shipped(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and likeness of each way."""
    exact, plain = gradina.load("emoji"), gradina.load("emoji", dtype="fp32", plain=True)
    models: dict[str, tuple[StableDiffusion, int]] = {
        "exact": (exact, 1),
        "reuse 2": (exact, 2),
        "tokens merged": (replace(exact, unet=merging(exact.unet)), 1),
        "linear layers in 8 bits": (replace(plain, unet=in_eight_bits(plain.unet)), 1),
    }
    request = gradina.Request(prompt=PROMPTS[0], seed=1)

    def drawn(name: str, prompts: tuple[str, ...]) -> list[Tensor]:
        model, reuse = models[name]
        asked = replace(request, prompt=prompts, reuse=reuse)
        return [to_pixels(picture.image) for picture in gradina.generate(model, asked)]

    wanted = drawn("exact", PROMPTS)
    seconds = medians({name: partial(drawn, name, PROMPTS[:1]) for name in models}, rounds)
    rows = {name: {"seconds for one picture": seconds[name]} for name in models}
    for name in list(models)[1:]:
        like = [psnr(a, b, peak=2) for a, b in zip(drawn(name, PROMPTS), wanted, strict=True)]
        rows[name]["likeness, dB"] = round(statistics.median(like), 1)
    return rows


@torch.inference_mode()
def of_sd15(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for one guided step of each way, and for all of its convolutions alone."""
    given = sd15(SIZE).inputs
    x, t, cond = given.latents.expand(2, -1, -1, -1), torch.full((2,), 500.0), given.states
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "model"
        write_model(sd15(SIZE), folder)
        model = gradina.load(folder, dtype="bf16")
        small = in_eight_bits(gradina.load(folder, dtype="fp32", plain=True).unet)
    half = z, step, text = x.bfloat16(), t.bfloat16(), cond.bfloat16()
    merged, cached = merging(model.unet), DeepCache(model.unet, 2)
    ways: dict[str, Runner] = {
        "exact": lambda: model.unet(*half),
        "reuse 2 (two steps, halved)": lambda: (cached(z, step, text), cached(z, step, text)),
        "tokens merged": lambda: merged(*half),
        "linear layers in 8 bits": lambda: small(x, t, cond),
    }
    seconds = medians(ways, rounds)
    seconds["reuse 2 (two steps, halved)"] = round(seconds["reuse 2 (two steps, halved)"] / 2, 4)
    sums: dict[str, float] = {}
    for shape, count in convolutions(model.unet, ways["exact"]).items():
        for name, each in medians(convolvers(shape), rounds).items():
            what = f"all 3x3 convolutions in {name}, alone"
            sums[what] = sums.get(what, 0) + count * each
    seconds |= {name: round(each, 4) for name, each in sums.items()}
    return {name: {"seconds": each} for name, each in seconds.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of all ways in turns (default: 7)")
    rounds = parser.parse_args().rounds
    told = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "the shipped model": of_the_shipped(rounds),
        f"a guided step of Stable Diffusion 1.5, {SIZE}x{SIZE}": of_sd15(rounds),
    }
    print(json.dumps(told, indent=2))
    (ROOT / "evaluation" / "left-out.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
