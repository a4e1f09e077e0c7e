"""What does a tiny decoder cost, and how like the whole one is it? On the shipped model, with one that is learnt here.

    python evaluation/previews.py [--minutes 4] [--rounds 7]

Pictures of what the model knows are drawn, and what they are thought to be at each step is kept: latents, and what the
whole decoder makes of them. A tiny decoder learns from all but the last of the pictures to make the same; on those last
ones its likeness is measured (PSNR in dB: median, and the tenth from below in a hundred). Timed in turns: a picture,
its film by either decoder, and at Stable Diffusion 1.5's shape (512x512, random weights) one preview by either.
Prints and writes `evaluation/previews.json`, and `docs/previews.png`: above the whole decoder, below the tiny one.
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
from gradina.kernels.prepack import packed
from gradina.models.taesd import TinyConfig, TinyDecoder
from gradina.pipeline.model import StableDiffusion, to_pixels
from gradina.tasks.metrics import psnr
from gradina.weights.formats.clip import read_pair
from gradina.weights.registry import locate_pair

ROOT = Path(__file__).parent.parent
PICTURES, UNSEEN, BATCH = 240, 24, 16
LR = 1e-3
REQUEST = gradina.Request(prompt="a teddy bear on a pink background", seed=1)


@torch.no_grad()
def watched(model: StableDiffusion, count: int) -> tuple[Tensor, Tensor]:
    """Latents (count, steps, c, h, w) as they are at each step, and the pixels that the whole decoder makes of them."""
    things = read_pair(locate_pair("emoji")).phrases[0]
    chosen = torch.randperm(len(things), generator=torch.Generator().manual_seed(0))
    latents, pixels = [], []
    for start in range(0, count, BATCH):
        prompts = tuple(things[i % len(things)] for i in chosen[torch.arange(start, start + BATCH) % len(things)])
        seen = [step.denoised for step in gradina.steps(model, gradina.Request(prompt=prompts, seed=start))]
        latents.append(torch.stack(seen, dim=1))
        made = [model.vae.decode(z.to(model.dtype)).float() for z in seen]
        pixels.append(torch.stack(made, dim=1).bfloat16())
    return torch.cat(latents)[:count], torch.cat(pixels)[:count]


def learnt(config: TinyConfig, latents: Tensor, pixels: Tensor, minutes: float) -> TinyDecoder:
    """A tiny decoder that has learnt for so long to make those pixels (n, 3, h, w) of those latents (n, c, h, w)."""
    torch.manual_seed(0)
    tiny, begun = TinyDecoder(config), time.monotonic()
    adam = torch.optim.AdamW(tiny.parameters(), lr=LR)
    batches = torch.split(torch.randperm(len(latents), generator=torch.Generator().manual_seed(1)), BATCH)
    for some in cycle(batches):
        done = (time.monotonic() - begun) / (60 * minutes)
        if done >= 1:
            break
        adam.param_groups[0]["lr"] = LR * min(1.0, 2 * (1 - done))
        with torch.autocast("cpu", torch.bfloat16):
            made = tiny(latents[some])
        loss = F.l1_loss(made.float(), pixels[some].float().clamp(-1, 1))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return tiny.eval().requires_grad_(False)


def film(model: StableDiffusion) -> list[Image.Image]:
    """All moments of one picture."""
    return [model.preview(step.denoised)[0] for step in gradina.steps(model, REQUEST)]


def of_the_shipped(minutes: float, rounds: int) -> tuple[dict[str, object], Image.Image]:
    """Likeness and seconds, and rows of moments by either decoder."""
    model = gradina.load("emoji")
    latents, pixels = watched(model, PICTURES)
    config = TinyConfig(blocks=(3,) * (len(model.vae.config.widths) - 1) + (1,))
    z, shown = (x[:-UNSEEN].flatten(0, 1) for x in (latents, pixels))
    tiny = packed(learnt(config, z, shown, minutes), lambda x: x.to(model.dtype))
    quick = replace(model, tiny=tiny)
    like = []
    for z in latents[-UNSEEN:]:
        pairs = zip(quick.preview(z), model.decode(z), strict=True)
        like.append([psnr(to_pixels(a), to_pixels(b), peak=2) for a, b in pairs])
    found = torch.tensor(like)
    seconds = medians(
        {
            "a picture": lambda: list(gradina.generate(model, REQUEST)),
            "its film by the whole decoder": partial(film, model),
            "its film by the tiny decoder": partial(film, quick),
        },
        rounds,
    )
    some = torch.stack([latents[-i, j] for i in (1, 2, 3) for j in (3, 9, -1)])
    rows = [decode(some) for decode in (model.decode, quick.preview)]
    told = {
        "learnt for minutes": minutes,
        "numbers of the tiny decoder": sum(p.numel() for p in TinyDecoder(config).parameters()),
        "likeness, dB": {
            "median": round(found.median().item(), 1),
            "tenth of a hundred": round(found.quantile(0.1).item(), 1),
            "of the last step, median": round(found[:, -1].median().item(), 1),
        },
        "seconds": seconds,
    }
    return told, grid.grid([picture for row in rows for picture in row], columns=len(some))


@torch.inference_mode()
def of_sd15(rounds: int) -> dict[str, float]:
    """Seconds of one preview."""
    with tempfile.TemporaryDirectory() as room:
        write_model(sd15(), Path(room) / "model")
        model = gradina.load(Path(room) / "model", dtype="bf16")
        tiny = packed(TinyDecoder(TinyConfig()), lambda x: x.to(model.dtype))
        quick, z = replace(model, tiny=tiny), sd15().inputs.latents
        return medians({"whole": lambda: model.preview(z), "tiny": lambda: quick.preview(z)}, rounds)


def main() -> None:
    """Learns, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4, help="for the tiny decoder to learn (default: 4)")
    parser.add_argument("--rounds", type=int, default=7, help="of all ways in turns (default: 7)")
    options = parser.parse_args()
    shipped, picture = of_the_shipped(options.minutes, options.rounds)
    told = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "the shipped model": shipped,
        "seconds for one preview of Stable Diffusion 1.5, 512x512": of_sd15(options.rounds),
    }
    print(json.dumps(told, indent=2))
    (ROOT / "evaluation" / "previews.json").write_text(json.dumps(told, indent=2) + "\n")
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(ROOT / "docs" / "previews.png", optimize=True)


if __name__ == "__main__":
    main()
