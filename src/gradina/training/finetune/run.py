"""A model made one's own, by a method, in a folder: with a log, samples, and the file or folder that is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from gradina.errors import Diverged, RecipeError
from gradina.files import atomic_write
from gradina.images import grid
from gradina.images.open import open_picture
from gradina.pipeline.generate import generate
from gradina.pipeline.model import StableDiffusion
from gradina.request import Request
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.methods import Learning
from gradina.training.finetune.trainable import Learner, Owning
from gradina.training.loop import Loss
from gradina.training.pretrain.run import Progress, alone, learn
from gradina.training.pretrain.stages import Stage

SEEDS = 4  # of each prompt of the samples
CHECKS = 4  # batches whose loss is a check
DONE = "done.json"


def own(
    learning: Learning,
    how: Owning,
    folder: Path,
    mark: str,
    prompts: Sequence[str],
    sample_every: int,
    checkpoint_every: float = 60.0,
    unseen: LatentDataset | None = None,
) -> Generator[Progress, None, Path]:
    """Learns, and yields after each step; the same call goes on after any interruption. Returns what is kept.

    The loss on `unseen` pictures, with the same noise each time, goes into the log beside each sample.
    Raises RecipeError where the folder belongs to something else, Diverged where the loss is no longer a number: what
    was learnt until then is kept.
    """
    with alone(folder):
        kept = finished(folder, mark)
        if kept is not None:
            return kept
        check = None
        if unseen is not None and learning.on is not None:
            check = partial(checked, learning.learner, learning.on(unseen), how)
        samples = Samples(learning, tuple(prompts), folder)
        made = Stage(learning.learner, how, learning.loss, samples.look, learning.rates, check)
        running = learn(made, folder, mark, sample_every, checkpoint_every)
        try:
            while True:
                progress = next(running)
                samples.keep(progress.step.step)
                yield progress
        except StopIteration as end:
            state = end.value
        except Diverged as error:
            kept = learning.keep(learning.learner, folder)
            raise Diverged(f"{error}; what was learnt until then is kept: {kept}") from error
        finally:
            running.close()
        assert isinstance(state.ema, Learner)
        kept = learning.keep(state.ema, folder)
        with atomic_write(folder / DONE) as file:
            file.write(json.dumps({"mark": mark, "kept": kept.name}).encode())
        samples.by_step()
        (folder / "state.safetensors").unlink(missing_ok=True)
        return kept


def finished(folder: Path, mark: str) -> Path | None:
    """What an earlier call has made here; None if it has not yet. RecipeError if it was made from something else."""
    path = folder / DONE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_bytes())
        of, kept = str(told["mark"]), folder / str(told["kept"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecipeError(f"{path}: is damaged ({error}); choose another --out folder, or remove this one") from error
    if of != mark:
        raise RecipeError(f"{folder}: holds what was made with other pictures or settings; choose another --out folder")
    if not kept.exists():
        raise RecipeError(f"{kept}: was made here and is gone; put it back, or remove {path} to learn it again")
    return kept


def mark_of(method: str, model: StableDiffusion, how: Owning, *made_from: object) -> str:
    """A name for all that decides what is learnt."""
    said = json.dumps([method, model.hash or model.name, asdict(how), *made_from], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass
class Samples:
    """What some prompts look like on the way: a sheet at each look, and in the end one over all steps."""

    learning: Learning
    prompts: tuple[str, ...]
    folder: Path
    new: list[Image.Image] = field(default_factory=list)  # the first picture of each prompt, not kept yet

    def look(self, learner: nn.Module) -> Image.Image:
        """The prompts, a few seeds each, at the model's defaults."""
        assert isinstance(learner, Learner)
        request = Request(prompt=self.prompts, images=SEEDS, seed=0)
        images = [picture.image for picture in generate(self.learning.model(learner), request)]
        self.new = images[::SEEDS]
        return grid.grid(images, columns=SEEDS, row_labels=self.prompts)

    def keep(self, step: int) -> None:
        """Writes what was just drawn, if anything, for the sheet over all steps."""
        for i, image in enumerate(self.new):
            path = self.folder / "samples" / f"{step:06}-{i}.png"
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                image.save(file, "PNG")
        self.new = []

    def by_step(self) -> None:
        """Writes `samples.png`: a row for each prompt, a column for each step at which it was drawn."""
        room, count = self.folder / "samples", range(len(self.prompts))
        steps = sorted({path.name.partition("-")[0] for path in room.glob("*.png")})
        steps = [step for step in steps if all((room / f"{step}-{i}.png").exists() for i in count)]
        images = [open_picture(room / f"{step}-{i}.png") for i in count for step in steps]
        labels = [f"step {int(step)}" for step in steps]
        with atomic_write(self.folder / "samples.png") as file:
            whole = grid.grid(images, columns=len(steps), column_labels=labels, row_labels=self.prompts)
            whole.save(file, "PNG")


@torch.no_grad()
def checked(learner: Learner, loss: Loss, how: Owning) -> float:
    """The loss of some batches that are the same each time."""
    with how.autocast():
        return float(torch.cat([loss(learner, -1 - k).float() for k in range(CHECKS)]).mean())
