"""What does a tiny decoder (TAESD) cost, and how good are its previews? On the shipped model, with one trained here.

    python evaluation/previews.py [--minutes 4] [--rounds 7]

Pictures of what the model knows are drawn, and the denoised latents of each step are kept, with what the VAE makes of
them. The tiny decoder is trained to reproduce that, on all but the last pictures; on those its PSNR is measured (dB:
median and first decile). Timed interleaved: a picture, its film by either decoder, and at Stable Diffusion 1.5's shape
(512x512, random weights) one preview by either. Prints and writes `evaluation/previews.json`, and `docs/previews.png`:
the VAE above, the tiny decoder below.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import gradina
from gradina.bench.timing import medians
from gradina.bench.workloads import sd15, write_model
from gradina.images import grid
from gradina.images.tensor import to_pixels
from gradina.models.taesd import TinyConfig, TinyDecoder
from gradina.pipeline.model import StableDiffusion
from gradina.runtime.device import multiplies_bf16
from gradina.runtime.prepack import prepack
from gradina.tasks.metrics import psnr
from gradina.weights.formats.clip import read_pair
from gradina.weights.registry import locate_pair

ROOT = Path(__file__).parent.parent
PICTURES, UNSEEN, BATCH = 240, 24, 16
LR = 1e-3
REQUEST = gradina.Request(prompt="a teddy bear on a pink background", seed=1)


@torch.no_grad()
def step_latents_and_pixels(model: StableDiffusion, count: int) -> tuple[Tensor, Tensor]:
    """The denoised latents (count, steps, c, h, w) of each step, and the pixels that the VAE decodes from them."""
    phrases = read_pair(locate_pair("emoji")).phrases[0]
    chosen = torch.randperm(len(phrases), generator=torch.Generator().manual_seed(0))
    latents, pixels = [], []
    for start in range(0, count, BATCH):
        prompts = tuple(phrases[i % len(phrases)] for i in chosen[torch.arange(start, start + BATCH) % len(phrases)])
        steps = [step.denoised for step in gradina.steps(model, gradina.Request(prompt=prompts, seed=start))]
        latents.append(torch.stack(steps, dim=1))
        decoded = [model.vae.decode(z.to(model.dtype)).float() for z in steps]
        pixels.append(torch.stack(decoded, dim=1).bfloat16())
    return torch.cat(latents)[:count], torch.cat(pixels)[:count]


def trained(config: TinyConfig, latents: Tensor, pixels: Tensor, minutes: float) -> TinyDecoder:
    """A tiny decoder, trained for some minutes to decode latents (n, c, h, w) to pixels (n, 3, h, w)."""
    torch.manual_seed(0)
    tiny, start = TinyDecoder(config), time.monotonic()
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=LR)
    batches = torch.split(torch.randperm(len(latents), generator=torch.Generator().manual_seed(1)), BATCH)
    for rows in cycle(batches):
        done = (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = LR * min(1.0, 2 * (1 - done))
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16()):
            decoded = tiny(latents[rows])
        loss = F.l1_loss(decoded.float(), pixels[rows].float().clamp(-1, 1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return tiny.eval().requires_grad_(False)


def preview_film(model: StableDiffusion) -> list[Image.Image]:
    """The previews of all steps of one picture."""
    return [model.preview(step.denoised)[0] for step in gradina.steps(model, REQUEST)]


def measure_shipped(minutes: float, rounds: int) -> tuple[dict[str, object], Image.Image]:
    """PSNR and seconds, and rows of previews by either decoder."""
    model = gradina.load("emoji")
    latents, pixels = step_latents_and_pixels(model, PICTURES)
    config = TinyConfig(blocks=(3,) * (len(model.vae.config.widths) - 1) + (1,))
    z, targets = (x[:-UNSEEN].flatten(0, 1) for x in (latents, pixels))
    tiny = prepack(trained(config, z, targets, minutes), lambda x: x.to(model.dtype))
    with_tiny = replace(model, tiny=tiny)
    values = []
    for z in latents[-UNSEEN:]:
        pairs = zip(with_tiny.preview(z), model.decode(z), strict=True)
        values.append([psnr(to_pixels(a), to_pixels(b), peak=2) for a, b in pairs])
    psnrs = torch.tensor(values)
    seconds = medians(
        {
            "a picture": lambda: list(gradina.generate(model, REQUEST)),
            "its film by the whole decoder": partial(preview_film, model),
            "its film by the tiny decoder": partial(preview_film, with_tiny),
        },
        rounds,
    )
    moments = torch.stack([latents[-i, j] for i in (1, 2, 3) for j in (3, 9, -1)])
    rows = [decode(moments) for decode in (model.decode, with_tiny.preview)]
    report = {
        "learnt for minutes": minutes,
        "numbers of the tiny decoder": sum(p.numel() for p in TinyDecoder(config).parameters()),
        "likeness, dB": {
            "median": round(psnrs.median().item(), 1),
            "tenth of a hundred": round(psnrs.quantile(0.1).item(), 1),
            "of the last step, median": round(psnrs[:, -1].median().item(), 1),
        },
        "seconds": seconds,
    }
    return report, grid.grid([picture for row in rows for picture in row], columns=len(moments))


@torch.inference_mode()
def measure_sd15(rounds: int) -> dict[str, float]:
    """Seconds of one preview."""
    with tempfile.TemporaryDirectory() as temporary:
        write_model(sd15(), Path(temporary) / "model")
        model = gradina.load(Path(temporary) / "model", dtype="bf16")
        tiny = prepack(TinyDecoder(TinyConfig()), lambda x: x.to(model.dtype))
        with_tiny, z = replace(model, tiny=tiny), sd15().inputs.latents
        return medians({"whole": lambda: model.preview(z), "tiny": lambda: with_tiny.preview(z)}, rounds)


def main() -> None:
    """Trains, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4, help="to train the tiny decoder (default: 4)")
    parser.add_argument("--rounds", type=int, default=7, help="of all variants, interleaved (default: 7)")
    options = parser.parse_args()
    shipped, picture = measure_shipped(options.minutes, options.rounds)
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "the shipped model": shipped,
        "seconds for one preview of Stable Diffusion 1.5, 512x512": measure_sd15(options.rounds),
    }
    print(json.dumps(report, indent=2))
    (ROOT / "evaluation" / "previews.json").write_text(json.dumps(report, indent=2) + "\n")
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(ROOT / "docs" / "previews.png", optimize=True)


if __name__ == "__main__":
    main()
