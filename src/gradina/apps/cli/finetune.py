"""The verbs that make a model one's own: each says what it will take, learns, and can be stopped and gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.generate import say
from gradina.apps.cli.train import asked_to_stop, preparations_said, said, told
from gradina.errors import RecipeError
from gradina.files import cache_folder, check_writable_folder
from gradina.request import Request

if TYPE_CHECKING:
    from gradina.pipeline.model import StableDiffusion
    from gradina.training.data.buckets import Crop
    from gradina.training.data.captioned_image import CaptionedImage
    from gradina.training.data.latents import LatentDataset
    from gradina.training.finetune.methods import Learning
    from gradina.training.finetune.trainable import Owning
    from gradina.training.pretrain.run import Progress

ETAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def finetune(
    folder: o.OwnFolder,
    model: o.Model = None,
    out: o.OwnOut = "runs/finetune",
    steps: o.OwnSteps = None,
    batch: o.Batch = None,
    accumulate: o.Accumulate = None,
    lr: o.Lr = None,
    warmup: o.Warmup = None,
    rank: o.Rank = 8,
    full: o.Full = False,
    text_rate: o.TextRate = None,
    caption_dropout: o.Dropout = None,
    min_snr: o.MinSNR = None,
    noise_offset: o.NoiseOffset = None,
    ema: o.Ema = None,
    checkpointing: o.Checkpointing = False,
    size: o.Side = None,
    flip: o.Flip = False,
    random_crop: o.RandomCrop = False,
    enlarge: o.Enlarge = False,
    validation: o.Unseen = None,
    prompt: o.Sampled = None,
    sample_every: o.SampleEvery = 250,
    seed: o.OwnSeed = 0,
    dtype: o.Dtype = None,
    dry_run: o.DryRun = False,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Teach a model pictures with captions."""
    given = locals()
    from gradina.training.data.image_folder import caption_summary, read_image_folder
    from gradina.training.finetune import methods

    pictures = read_image_folder(folder, out=out)
    say(caption_summary(pictures))
    unseen = read_image_folder(validation) if validation else []
    if unseen:
        say(f"validation, {caption_summary(unseen)}")
        known = {(one.file.resolve(), one.member) for one in pictures}
        both = sum((one.file.resolve(), one.member) in known for one in unseen)
        if both:
            say(f"validation: {both} of {len(unseen)} pictures are learnt from, too, and say little; give others")
    with Shop("finetune", given) as shop:
        data = shop.data(pictures)
        learning = methods.finetuning(shop.model, data, shop.how)
        prompts = prompt or list(dict.fromkeys(one.caption for one in pictures))[:4]
        shop.learn(learning, data, pictures, prompts, shop.data(unseen) if unseen else None)


def dreambooth(
    folder: o.OwnFolder,
    instance: o.Instance = "a sks thing",
    class_: o.Class = None,
    class_pictures: o.ClassPictures = 100,
    prior: o.Prior = None,
    model: o.Model = None,
    out: o.OwnOut = "runs/dreambooth",
    steps: o.OwnSteps = None,
    batch: o.Batch = None,
    accumulate: o.Accumulate = None,
    lr: o.Lr = None,
    warmup: o.Warmup = None,
    rank: o.Rank = 8,
    full: o.Full = False,
    text_rate: o.TextRate = None,
    min_snr: o.MinSNR = None,
    noise_offset: o.NoiseOffset = None,
    ema: o.Ema = None,
    checkpointing: o.Checkpointing = False,
    size: o.Side = None,
    flip: o.Flip = False,
    random_crop: o.RandomCrop = False,
    enlarge: o.Enlarge = False,
    prompt: o.Sampled = None,
    sample_every: o.SampleEvery = 100,
    seed: o.OwnSeed = 0,
    dtype: o.Dtype = None,
    dry_run: o.DryRun = False,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Teach a model a thing of one's own, under a rare word (DreamBooth)."""
    given = locals()
    from gradina.training.data.captioned_image import CaptionedImage
    from gradina.training.data.image_folder import read_image_folder
    from gradina.training.finetune import methods

    pictures, others = read_image_folder(folder, instance, out), []
    with Shop("dreambooth", given) as shop:
        if class_ and not dry_run:
            drawn = methods.class_pictures(shop.model, class_, class_pictures, Path(out) / "class")
            others = [CaptionedImage(path, class_) for path in drawn]
        data = shop.data(pictures)
        shown = shop.data(others) if others else data if class_ else None  # a dry run draws none
        learning = methods.dreambooth(shop.model, data, shown, shop.how)
        prompts = prompt or [instance, *([class_] if class_ else [])]
        shop.learn(learning, data, [*pictures, *others], prompts)


def invert(
    folder: o.OwnFolder,
    word: o.Word = "<mine>",
    init_word: o.InitWord = "thing",
    vectors: o.Vectors = 1,
    model: o.Model = None,
    out: o.OwnOut = "runs/invert",
    steps: o.OwnSteps = None,
    batch: o.Batch = None,
    accumulate: o.Accumulate = None,
    lr: o.Lr = None,
    warmup: o.Warmup = None,
    ema: o.Ema = None,
    checkpointing: o.Checkpointing = False,
    size: o.Side = None,
    flip: o.Flip = False,
    random_crop: o.RandomCrop = False,
    enlarge: o.Enlarge = False,
    prompt: o.Sampled = None,
    sample_every: o.SampleEvery = 250,
    seed: o.OwnSeed = 0,
    dtype: o.Dtype = None,
    dry_run: o.DryRun = False,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Teach a model a new word, and nothing else (textual inversion)."""
    given = locals()
    from gradina.training.data.image_folder import read_image_folder
    from gradina.training.finetune import methods

    pictures = read_image_folder(folder, word, out)
    with Shop("inversion", given) as shop:
        data = shop.data(pictures)
        learning = methods.inversion(shop.model, data, word, init_word, shop.how)
        shop.learn(learning, data, pictures, prompt or [word, f"{word} riding a horse", f"{word} on a pink background"])


def imagic(
    picture: o.Picture,
    prompt: o.Becomes,
    model: o.Model = None,
    out: o.OwnOut = "runs/imagic",
    states_steps: o.StatesSteps = None,
    steps: o.OwnSteps = None,
    batch: o.Batch = None,
    lr: o.Lr = None,
    rank: o.Rank = 8,
    full: o.Full = False,
    checkpointing: o.Checkpointing = False,
    size: o.Side = None,
    enlarge: o.Enlarge = False,
    sample_every: o.SampleEvery = 500,
    seed: o.OwnSeed = 0,
    dtype: o.Dtype = None,
    dry_run: o.DryRun = False,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Change what a picture shows, by words (Imagic); afterwards `--edit` draws it at any strength."""
    given = locals()
    from gradina.training.data.captioned_image import CaptionedImage
    from gradina.training.finetune import methods
    from gradina.weights.formats.imagic import read_states

    pictures = [CaptionedImage(Path(picture), prompt)]
    if not Path(picture).is_file():
        raise RecipeError(f"{picture}: there is no such picture")
    first = {**given, "out": str(Path(out) / "1-text"), "lr": None, "steps": states_steps, "full": False}
    with Shop("nearer", first) as shop:
        data = shop.data(pictures)
        near = shop.learn(methods.nearer(shop.model, data, prompt, shop.how), data, pictures, [prompt], quietly=True)
    if near is None:
        return
    with Shop("onto", {**given, "out": str(Path(out) / "2-picture")}, shop.model if not full else None) as shop:
        states = read_states(near, shop.model.text.config.width)
        data = shop.data(pictures)
        edit = shop.learn(methods.onto(shop.model, data, states, shop.how), data, pictures, [prompt])
        if edit is not None:
            base = Path(edit).parent / "model"
            high, wide = (shop.model.vae.config.factor * n for n in data.largest[1:])
            request = Request(prompt=prompt, seed=seed, width=wide, height=high)
            typer.echo(_over_etas(base if base.is_dir() else model, request, edit, Path(out)))


def _over_etas(model: Path | str | None, request: Request, edit: Path, out: Path) -> Path:
    """The edit at several shares of the prompt, side by side, as a file."""
    from gradina.files import atomic_write
    from gradina.images import grid
    from gradina.pipeline.generate import generate
    from gradina.pipeline.load import load

    opened = load(model)
    asked = (replace(request, edit=(str(edit), eta)) for eta in ETAS)
    images = [picture.image for one in asked for picture in generate(opened, one)]
    with atomic_write(out / "strip.png") as file:
        grid.strip(images, [f"{eta:g}" for eta in ETAS]).save(file, "PNG")
    return out / "strip.png"


class Shop:
    """What the verbs share: the model ready to learn, settings, data, and the run with its progress."""

    def __init__(self, method: str, given: dict[str, Any], model: StableDiffusion | None = None) -> None:
        from gradina.pipeline.load import load
        from gradina.runtime.device import pick_device, pick_dtype, use_threads
        from gradina.training.finetune import methods
        from gradina.training.finetune.trainable import Owning

        use_threads(given["threads"])
        self.method, self.given, self.out = method, given, Path(given["out"])
        for place in () if given["dry_run"] else (self.out, cache_folder()):
            check_writable_folder(place)
        numbers = str(pick_dtype(given["dtype"], pick_device("cpu"))).removeprefix("torch.")
        if numbers == "float16":
            raise RecipeError("dtype: fp16 does not learn; take bf16 or fp32")
        full = bool(given.get("full"))
        names = set(Owning.__dataclass_fields__)
        told = {name: value for name, value in given.items() if name in names}
        self.how: Owning = methods.settings(
            method, **{**told, "rank": None if full else given.get("rank", 8), "precision": numbers}
        )
        self.crop = _crop(given)
        kept = "fp32" if full or numbers == "float32" else "bf16"
        self.model = model or load(given["model"], device="cpu", dtype=kept, plain=True)
        self._preparing = preparations_said(given["quiet"])

    def __enter__(self) -> Shop:
        self._preparing.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._preparing.__exit__(None, None, None)

    def data(self, pictures: Sequence[CaptionedImage]) -> LatentDataset:
        """Their latents."""
        from gradina.training.data.latents import encode_pictures

        defaults, side = self.model.defaults, self.given["size"]
        return encode_pictures(self.model, pictures, self.crop, side**2 if side else defaults.width * defaults.height)

    def learn(
        self,
        learning: Learning,
        data: LatentDataset,
        pictures: Sequence[CaptionedImage],
        prompts: Sequence[str],
        unseen: LatentDataset | None = None,
        quietly: bool = False,
    ) -> Path | None:
        """Says what it takes, and learns; what is kept, or None after a dry run."""
        from gradina.training.finetune.memory_estimate import cost, free_memory, refuse_too_much
        from gradina.training.finetune.run import mark_of, own

        self.model = learning.live.model
        needed = cost(learning, self.how, data.largest)
        typer.echo(f"{needed}; {self.how.steps} steps of {self.how.batch * self.how.accumulate} pictures", err=True)
        refuse_too_much(needed, self.how, free_memory())
        if self.given["dry_run"]:
            return None
        special = [self.given.get(name) for name in ("word", "init_word")]
        mark = mark_of(
            self.method, self.model, self.how, _seen(pictures), asdict(self.crop), self.given["size"], special
        )
        running = own(learning, self.how, self.out, mark, prompts, self.given["sample_every"], unseen=unseen)
        kept = _watched(running, self.out, self.given["quiet"])
        if not quietly:
            typer.echo(kept)
        return kept


def _seen(pictures: Sequence[CaptionedImage]) -> list[tuple[object, ...]]:
    """What decides what is learnt from pictures: their bytes, captions, and how often each is drawn, if not once."""
    hashes = [hashlib.sha256(one.data()).hexdigest() for one in pictures]
    often = [(one.repeats,) if one.repeats > 1 else () for one in pictures]
    return [(seen, one.caption, *n) for seen, one, n in zip(hashes, pictures, often, strict=True)]


def _crop(given: dict[str, Any]) -> Crop:
    from gradina.training.data.buckets import Crop

    names = (("chance", "random_crop"), ("flip", "flip"), ("enlarge", "enlarge"))
    return Crop(**{ours: bool(given.get(typed)) for ours, typed in names})


def _watched(running: Generator[Progress, None, Path], folder: Path, quiet: bool) -> Path:
    """Takes the steps, shows how far it is, and stops between two of them when it is asked to."""
    kept: list[Path] = []

    def steps() -> Iterator[Progress]:
        kept.append((yield from running))

    with asked_to_stop() as stopped:
        for line in told(steps()):
            if not quiet:
                said(line)
            if stopped:
                running.close()
                said("")
                say(f"the same command goes on from here ({folder})")
                raise typer.Exit(130)
    said("")
    return kept[0]
