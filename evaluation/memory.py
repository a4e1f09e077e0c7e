"""How exact is the memory estimate of fine-tuning, and can a laptop do it?

    python evaluation/memory.py

A model of Stable Diffusion 1.5's shape with random weights takes three training steps at 512x512 in bf16, in a process
of its own per method, on Linux. Prints and writes `evaluation/memory.json`: the estimate and the peak, in GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import gradina
from gradina.bench.workloads import sd15, write_model
from gradina.training.data.captioned_image import CaptionedImage
from gradina.training.data.latents import Crop, encode_pictures
from gradina.training.finetune import methods
from gradina.training.finetune.config import config_for
from gradina.training.finetune.memory_estimate import estimate
from gradina.training.finetune.run import finetune

ROOT = Path(__file__).parents[1]
SIDE, STEPS = 512, 3
METHODS = ("LoRA, rank 8", "textual inversion", "all weights")
MODEL = "model"  # the name of its folder


def measure(name: str, folder: Path) -> dict[str, float]:
    """Takes some steps of a method here: the estimate, and the peak of this process."""
    full = name == "all weights"  # which are trained in fp32
    model = gradina.load(folder / MODEL, device="cpu", dtype="fp32" if full else "bf16", plain=True)
    pictures = [CaptionedImage(path, "dolls") for path in sorted((ROOT / "docs" / "guides" / "dolls").iterdir())]
    data = encode_pictures(model, pictures, Crop(enlarge=True), SIDE * SIDE)
    inversion, (rank, ema) = name == "textual inversion", (None, 0.0) if full else (8, None)
    key = "textual_inversion" if inversion else "finetune"
    config = config_for(key, steps=100, batch=1, accumulate=1, precision="bfloat16", rank=rank, ema=ema)
    if inversion:
        method = methods.textual_inversion(model, data, "<dolls>", "toy", config)
    else:
        method = methods.finetuning(model, data, config)
    del model  # the method holds what it needs of it
    estimated = estimate(method, config, data.largest).memory
    running = finetune(method, config, folder / name, "mark", ["dolls"], 1000)
    for _ in islice(running, STEPS):
        pass
    status = Path("/proc/self/status").read_text().splitlines()  # getrusage would include the parent process
    peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"said, GB": round(estimated / 1e9, 2), "at most, GB": round(peak / 1e9, 2)}


def main() -> None:
    """Measures, prints and writes; or measures one method in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one, folder = options.one[0], Path(options.one[1])
        if one == MODEL:
            write_model(sd15(SIDE), folder / MODEL)
        else:
            print(json.dumps(measure(one, folder)), flush=True)
        os._exit(0)  # closing the generator would write the weights: many GB
    with tempfile.TemporaryDirectory() as temporary:
        rows = {}
        for one in (MODEL, *METHODS):
            command = [sys.executable, __file__, "--one", one, temporary]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            if one != MODEL:
                rows[one] = json.loads(done.stdout.splitlines()[-1])
                print(one, rows[one], flush=True)
    (ROOT / "evaluation" / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
