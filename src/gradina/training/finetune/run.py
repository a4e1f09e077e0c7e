"""Runs a method in a folder: with a log, samples, checkpoints, and the file or folder that is the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from gradina.errors import Diverged, RecipeError
from gradina.files import atomic_write
from gradina.images import grid
from gradina.images.open import open_picture
from gradina.pipeline.generate import generate
from gradina.pipeline.model import StableDiffusion
from gradina.request import Request
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.config import METHODS, FinetuneConfig
from gradina.training.finetune.methods import Method
from gradina.training.finetune.trainable import Trainable
from gradina.training.loop import Loss, autocast
from gradina.training.pretrain.run import Progress, locked, train_stage
from gradina.training.pretrain.stages import Stage

SEEDS = 4  # of each prompt of the samples
VALIDATION_BATCHES = 4
DONE = "done.json"
ADDED_LATER = {"shift": None, "interval": None, "optimizer": None}  # count only if set, so that older runs resume


def finetune(
    method: Method,
    config: FinetuneConfig,
    folder: Path,
    fingerprint: str,
    prompts: Sequence[str],
    sample_every: int,
    checkpoint_every: float = 60.0,
    validation: LatentDataset | None = None,
) -> Generator[Progress, None, Path]:
    """Trains, and yields after each step; the same call resumes after any interruption. Returns the result's path.

    The loss on `validation` pictures, with the same noise each time, is logged with each sample. Raises RecipeError
    where the folder belongs to something else, Diverged where the loss is not finite: what was trained until then is
    written first.
    """
    with locked(folder):
        result = finished(folder, fingerprint)
        if result is not None:
            return result
        validate = None
        if validation is not None and method.loss_on is not None:
            validate = partial(validation_loss, method.trainable, method.loss_on(validation), config)
        samples = Samples(method, tuple(prompts), folder)
        stage = Stage(method.trainable, config, method.loss, samples.draw, method.rates, validate)
        running = train_stage(stage, folder, fingerprint, sample_every, checkpoint_every)
        try:
            while True:
                progress = next(running)
                samples.save(progress.step.step)
                yield progress
        except StopIteration as end:
            state = end.value
        except Diverged as error:
            result = method.write(method.trainable, folder)
            raise Diverged(f"{error}; what was trained until then is kept: {result}") from error
        finally:
            running.close()
        result = method.write(cast(Trainable, state.ema), folder)
        with atomic_write(folder / DONE) as file:
            file.write(json.dumps({"mark": fingerprint, "kept": result.name}).encode())
        samples.save_all()
        (folder / "state.safetensors").unlink(missing_ok=True)
        return result


def finished(folder: Path, fingerprint: str) -> Path | None:
    """The result of an earlier run; None if there is none yet. Raises RecipeError if it was made of something else."""
    path = folder / DONE
    if not path.is_file():
        return None
    try:
        done = json.loads(path.read_bytes())
        of, result = str(done["mark"]), folder / str(done["kept"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecipeError(f"{path}: is damaged ({error}); choose another --out folder, or remove this one") from error
    if of != fingerprint:
        raise RecipeError(f"{folder}: holds what was made with other pictures or settings; choose another --out folder")
    if not result.exists():
        raise RecipeError(f"{result}: was made here and is gone; put it back, or remove {path} to train it again")
    return result


def fingerprint_of(method: str, model: StableDiffusion, config: FinetuneConfig, *inputs: object) -> str:
    """A hash of all that decides what is trained."""
    fields = {name: value for name, value in asdict(config).items() if ADDED_LATER.get(name, ...) != value}
    text = json.dumps([METHODS[method].key, model.hash or model.name, fields, *inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Samples:
    """Pictures of some prompts during training: a sheet at a time, and in the end one over all steps."""

    method: Method
    prompts: tuple[str, ...]
    folder: Path
    new: list[Image.Image] = field(default_factory=list)  # the first picture of each prompt, not saved yet

    def draw(self, trainable: Trainable) -> Image.Image:
        """A sheet of the prompts, a few seeds each, at the model's defaults."""
        request = Request(prompt=self.prompts, images=SEEDS, seed=0)
        images = [picture.image for picture in generate(self.method.model(trainable), request)]
        self.new = images[::SEEDS]
        return grid.grid(images, columns=SEEDS, row_labels=self.prompts)

    def save(self, step: int) -> None:
        """Writes what was just drawn, if anything, for the sheet over all steps."""
        for i, image in enumerate(self.new):
            path = self.folder / "samples" / f"{step:06}-{i}.png"
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                image.save(file, "PNG")
        self.new = []

    def save_all(self) -> None:
        """Writes `samples.png`: a row for each prompt, a column for each step at which it was drawn."""
        folder, count = self.folder / "samples", range(len(self.prompts))
        steps = sorted({path.name.partition("-")[0] for path in folder.glob("*.png")})
        steps = [step for step in steps if all((folder / f"{step}-{i}.png").exists() for i in count)]
        images = [open_picture(folder / f"{step}-{i}.png") for i in count for step in steps]
        labels = [f"step {int(step)}" for step in steps]
        with atomic_write(self.folder / "samples.png") as file:
            sheet = grid.grid(images, columns=len(steps), column_labels=labels, row_labels=self.prompts)
            sheet.save(file, "PNG")


@torch.no_grad()
def validation_loss(trainable: Trainable, loss: Loss, config: FinetuneConfig) -> float:
    """The mean loss of some batches, which are the same each time."""
    with autocast(trainable, config):
        return float(torch.cat([loss(trainable, -1 - k).float() for k in range(VALIDATION_BATCHES)]).mean())
