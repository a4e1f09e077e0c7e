"""Shortcuts that were measured and rejected: token merging, and 8-bit integers.

    python evaluation/left_out.py [--rounds 7]

Each is measured on the shipped model (seconds for one picture of 20 steps, and the median PSNR in dB to the exact
pictures) and on a U-Net of Stable Diffusion 1.5's shape with random weights (seconds for one guided step at 512x512),
interleaved with the exact variant and with `reuse`. PyTorch has int8 linear layers, but no convolutions that quantize
their input on the fly; so that U-Net's convolutions are timed alone, on inputs quantized before: an upper bound of what
they could save. Prints and writes `evaluation/left-out.json`.
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
from gradina.images.tensor import to_pixels
from gradina.kernels.prepack import PackedWeight, onednn_conv
from gradina.models.deepcache import DeepCache
from gradina.models.unet import UNet
from gradina.nn.conv import Conv2d
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.metrics import psnr

ROOT = Path(__file__).parent.parent
PROMPTS = tuple(f"{thing} on a pink background" for thing in ("a teddy bear", "a red apple", "a crown", "a rocket"))
MERGED = 0.5  # fraction of the tokens that are merged into others
SIZE = 512  # pixels


class TokenMerging(nn.Module):
    """Self-attention over merged tokens.

    Source: Bolya & Hoffman, "Token Merging for Fast Stable Diffusion" (2303.17604), section 3: one token of each 2x2
    is a target; the fraction of the others that are most similar to a target are averaged into it and get its output.
    """

    def __init__(self, attention: nn.Module, fraction: float) -> None:
        super().__init__()
        self.attention, self.fraction = attention, fraction

    def forward(self, x: Tensor, context: None = None, residual: Tensor | None = None) -> Tensor:
        """x (b, n, width) of a square map -> the attention's output, plus a residual."""
        positions = torch.arange(x.shape[1]).view(isqrt(x.shape[1]), -1)
        target = torch.zeros_like(positions, dtype=torch.bool)
        target[::2, ::2] = True
        sources, targets = x[:, positions[~target]], x[:, positions[target]]
        similarity = F.normalize(sources, dim=-1) @ F.normalize(targets, dim=-1).mT
        best, nearest = similarity.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        count = round(self.fraction * x.shape[1])
        merged_away, kept = order[:, :count], order[:, count:]
        target_of = nearest.gather(1, merged_away)
        targets = targets.scatter_reduce(1, _expanded(target_of, x), _gathered(sources, merged_away), "mean")
        found = self.attention(torch.cat([_gathered(sources, kept), targets], dim=1))
        out_kept, out_targets = found[:, : kept.shape[1]], found[:, kept.shape[1] :]
        out_sources = torch.empty_like(sources).scatter_(1, _expanded(kept, x), out_kept)
        out_sources.scatter_(1, _expanded(merged_away, x), _gathered(out_targets, target_of))
        out = torch.empty_like(x)
        out[:, positions[~target]], out[:, positions[target]] = out_sources, out_targets
        return out if residual is None else out + residual


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _expanded(index, x))


def with_token_merging(unet: UNet) -> UNet:
    """A copy of the network with token merging at the highest resolution that has attention."""
    unet, level = shallow_clone(unet), unet.config.attention.index(True)
    where = (f"down.{level}.", f"up.{len(unet.config.widths) - 1 - level}.")
    layers = {
        n: TokenMerging(m, MERGED) for n, m in unet.named_modules() if n.startswith(where) and n.endswith("self_attn")
    }
    inject(unet, layers)
    return unet


def with_int8_linear(unet: UNet) -> UNet:
    """A copy of a plain network with dynamically quantized int8 linear layers in its transformers."""
    names = {name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and ".blocks." in name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(unet), names, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return cast(UNet, quantized)


def count_convolutions(unet: UNet, run: Runner) -> Counter[tuple[int, ...]]:
    """How often a run calls 3x3 convolutions, by (channels in, channels out, stride, batch, height, width)."""
    found: Counter[tuple[int, ...]] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        conv = cast(nn.Conv2d, layer)
        if conv.kernel_size == (3, 3) and min(conv.weight.shape[:2]) > 4:
            b, channels, h, w = inputs[0].shape
            found[(channels, conv.out_channels, conv.stride[0], b, h, w)] += 1

    hooks = [layer.register_forward_hook(count) for layer in unet.modules() if isinstance(layer, nn.Conv2d)]
    run()
    for hook in hooks:
        hook.remove()
    return found


def convolution_runners(shape: tuple[int, ...]) -> dict[str, Runner]:
    """One convolution in prepacked bf16, and in int8 on quantized input."""
    channels, out, stride, b, h, w = shape
    arguments: tuple[Any, ...] = ([stride, stride], [1, 1], [1, 1], 1)
    x = torch.randn(b, channels, h, w).to(memory_format=torch.channels_last)
    weight = torch.randn(out, channels, 3, 3)
    conv = Conv2d(channels, out, 3, stride, 1, bias=False).bfloat16().requires_grad_(False)
    conv.weight = cast(nn.Parameter, PackedWeight(conv.weight, onednn_conv(conv)))
    scale, scales = 8 / 255, weight.abs().amax((1, 2, 3)) / 127
    quantized_x = (x / scale + 128).round().clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    quantized = (weight / scales[:, None, None, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(quantized, scales, scale, 128, *arguments, list(x.shape))
    zeros, bf16 = torch.zeros(out, dtype=torch.int64), x.bfloat16()
    after: tuple[Any, ...] = (1.0, 0, torch.bfloat16, "none", [], "")
    return {
        "bf16": lambda: conv(bf16),
        "8 bits": lambda: torch.ops.onednn.qconv_pointwise(
            quantized_x, scale, 128, packed, scales, zeros, None, *arguments, *after
        ),
    }


@torch.inference_mode()
def measure_shipped(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and PSNR of each variant."""
    exact, plain = gradina.load("emoji"), gradina.load("emoji", dtype="fp32", plain=True)
    models: dict[str, tuple[StableDiffusion, int]] = {
        "exact": (exact, 1),
        "reuse 2": (exact, 2),
        "tokens merged": (replace(exact, unet=with_token_merging(exact.unet)), 1),
        "linear layers in 8 bits": (replace(plain, unet=with_int8_linear(plain.unet)), 1),
    }
    request = gradina.Request(prompt=PROMPTS[0], seed=1)

    def draw(name: str, prompts: tuple[str, ...]) -> list[Tensor]:
        model, reuse = models[name]
        batch = replace(request, prompt=prompts, reuse=reuse)
        return [to_pixels(picture.image) for picture in gradina.generate(model, batch)]

    exact_pictures = draw("exact", PROMPTS)
    seconds = medians({name: partial(draw, name, PROMPTS[:1]) for name in models}, rounds)
    rows = {name: {"seconds for one picture": seconds[name]} for name in models}
    for name in list(models)[1:]:
        similarity = [psnr(a, b, peak=2) for a, b in zip(draw(name, PROMPTS), exact_pictures, strict=True)]
        rows[name]["likeness, dB"] = round(statistics.median(similarity), 1)
    return rows


@torch.inference_mode()
def measure_sd15(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for one guided step of each variant, and for its convolutions alone."""
    inputs = sd15(SIZE).inputs
    x, t, cond = inputs.latents.expand(2, -1, -1, -1), torch.full((2,), 500.0), inputs.states
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(sd15(SIZE), folder)
        model = gradina.load(folder, dtype="bf16")
        quantized = with_int8_linear(gradina.load(folder, dtype="fp32", plain=True).unet)
    bf16 = z, step, states = x.bfloat16(), t.bfloat16(), cond.bfloat16()
    merged, deepcache = with_token_merging(model.unet), DeepCache(model.unet, 2)
    variants: dict[str, Runner] = {
        "exact": lambda: model.unet(*bf16),
        "reuse 2 (two steps, halved)": lambda: (deepcache(z, step, states), deepcache(z, step, states)),
        "tokens merged": lambda: merged(*bf16),
        "linear layers in 8 bits": lambda: quantized(x, t, cond),
    }
    seconds = medians(variants, rounds)
    seconds["reuse 2 (two steps, halved)"] = round(seconds["reuse 2 (two steps, halved)"] / 2, 4)
    sums: dict[str, float] = {}
    for shape, count in count_convolutions(model.unet, variants["exact"]).items():
        for dtype, each in medians(convolution_runners(shape), rounds).items():
            name = f"all 3x3 convolutions in {dtype}, alone"
            sums[name] = sums.get(name, 0) + count * each
    seconds |= {name: round(total, 4) for name, total in sums.items()}
    return {name: {"seconds": value} for name, value in seconds.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of all variants, interleaved (default: 7)")
    rounds = parser.parse_args().rounds
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "the shipped model": measure_shipped(rounds),
        f"a guided step of Stable Diffusion 1.5, {SIZE}x{SIZE}": measure_sd15(rounds),
    }
    print(json.dumps(report, indent=2))
    (ROOT / "evaluation" / "left-out.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
