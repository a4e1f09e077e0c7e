"""The verbs that fine-tune a model; each prints its cost first, and can be stopped and resumed.

The options of a verb are the fields of FinetuneConfig that its method uses, of Run, and its own parameters.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import Field, asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.grids import parse
from gradina.apps.cli.output import print_note
from gradina.apps.cli.train import preparations_shown, watched
from gradina.errors import RecipeError
from gradina.files import atomic_write, cache_folder, check_writable_folder
from gradina.request import Request
from gradina.training.finetune.config import FinetuneConfig, config_for
from gradina.training.settings import NoiseLaw, Option

if TYPE_CHECKING:
    from gradina.pipeline.model import StableDiffusion
    from gradina.training.data.captioned_image import CaptionedImage
    from gradina.training.data.latents import LatentDataset
    from gradina.training.finetune.methods import Method

ETAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
HELP_ORDER = [
    "prior", "vectors", "model", "out", "states_steps", "steps", "batch", "accumulate", "lr", "warmup", "rank", "full",
    "text_rate", "caption_dropout", "min_snr", "noise_offset", "shift", "interval", "ema", "checkpointing", "size",
    "flip", "random_crop", "enlarge", "validation", "prompt", "sample_every", "seed", "dtype", "dry_run", "threads",
    "quiet",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how a verb runs, whatever its method."""

    model: o.Model = None
    out: o.FinetuneFolder
    size: o.TrainingSize = None
    flip: o.Flip = False
    random_crop: o.RandomCrop = False
    enlarge: o.Enlarge = False
    prompt: o.SamplePrompts = None
    sample_every: o.SampleEvery
    dtype: o.Dtype = None
    dry_run: o.DryRun = False
    threads: o.Threads = None
    quiet: o.Quiet = False


def verb(method: str, without: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a verb, `without` some options, of a function of a configuration, a Run (with `defaults`) and the rest."""
    config = {name: p for name, p in _config_parameters().items() if name not in without.split()}
    taken, hints = [f for f in fields(Run) if f.name not in without.split()], get_type_hints(Run, include_extras=True)
    run = {f.name: _keyword(f.name, hints[f.name], defaults.get(f.name, f.default)) for f in taken}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            chosen = {name: given.pop(name) for name in config}
            if chosen.pop("full", False):
                chosen["rank"] = None
            chosen["interval"] = parse("interval", chosen["interval"])
            options = Run(**{name: given.pop(name) for name in run})
            function(config_for(method, **chosen), options, **given)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[2:]
        parameters = [*(p.replace(kind=p.KEYWORD_ONLY) for p in own), *config.values(), *run.values()]
        parameters.sort(key=lambda p: HELP_ORDER.index(p.name) if p.name in HELP_ORDER else -1)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


@cache
def _config_parameters() -> dict[str, inspect.Parameter]:
    """The options of FinetuneConfig's fields, and --full for a rank of None."""
    hints, found = get_type_hints(FinetuneConfig, include_extras=True), {"full": _keyword("full", o.Full, False)}
    for field in fields(FinetuneConfig):
        for option in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(option, Option):
                found[field.name] = _keyword(field.name, *_option(field, hints[field.name].__origin__, option))
    return found


def _option(field: Field[Any], kind: Any, option: Option) -> tuple[Any, Any]:
    """A field's annotation for Typer, and its default there: None, unless the field's own is shown."""
    flags, kind = (f"--{field.name.replace('_', '-')}", *option.short), (*get_args(kind), kind)[0]  # without None
    if kind is bool:
        return Annotated[bool, o.flag(str(option.default), option.help, *flags)], False
    kind, metavar = {int: (int, "N"), float: (float, "X")}.get(kind, (str, "LOW:HIGH"))
    info = o.opt(metavar, option.default, option.help, *flags, minimum=option.minimum)
    return (Annotated[kind, info], field.default) if option.default is True else (Annotated[kind | None, info], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


@verb("finetune", without="prior vectors", out="runs/finetune", sample_every=250)
def finetune(config: FinetuneConfig, run: Run, folder: o.ImageFolder, validation: o.ValidationFolder = None) -> None:
    """Fine-tune a model on pictures with captions."""
    from gradina.training.data.image_folder import caption_summary, read_image_folder
    from gradina.training.finetune import methods

    pictures = read_image_folder(folder, out=run.out)
    print_note(caption_summary(pictures))
    unseen = read_image_folder(validation) if validation else []
    if unseen:
        print_note(f"validation, {caption_summary(unseen)}")
        known = {(one.file.resolve(), one.member) for one in pictures}
        both = sum((one.file.resolve(), one.member) in known for one in unseen)
        if both:
            print_note(f"validation: {both} of {len(unseen)} pictures are also trained on; give others")
    with FinetuneCommand("finetune", config, run) as command:
        data = command.data(pictures)
        method = methods.finetuning(command.model, data, command.config)
        prompts = run.prompt or list(dict.fromkeys(one.caption for one in pictures))[:4]
        command.train(method, data, pictures, prompts, command.data(unseen) if unseen else None)


@verb("dreambooth", without="caption_dropout vectors", out="runs/dreambooth", sample_every=100)
def dreambooth(
    config: FinetuneConfig,
    run: Run,
    folder: o.ImageFolder,
    instance: o.Instance = "a sks thing",
    class_: o.Class = None,
    class_pictures: o.ClassPictures = 100,
) -> None:
    """Teach a model a subject under a rare word (DreamBooth)."""
    from gradina.training.data.captioned_image import CaptionedImage
    from gradina.training.data.image_folder import read_image_folder
    from gradina.training.finetune import methods

    pictures, of_class = read_image_folder(folder, instance, run.out), list[CaptionedImage]()
    with FinetuneCommand("dreambooth", config, run) as command:
        if class_ and not run.dry_run:
            paths = methods.class_pictures(command.model, class_, class_pictures, Path(run.out) / "class")
            of_class = [CaptionedImage(path, class_) for path in paths]
        data = command.data(pictures)
        class_data = command.data(of_class) if of_class else data if class_ else None  # a dry run draws none
        method = methods.dreambooth(command.model, data, class_data, command.config)
        prompts = run.prompt or [instance, *([class_] if class_ else [])]
        command.train(method, data, [*pictures, *of_class], prompts)


@verb("textual_inversion", without="prior rank full text_rate caption_dropout", out="runs/invert", sample_every=250)
def invert(
    config: FinetuneConfig, run: Run, folder: o.ImageFolder, word: o.Word = "<mine>", init_word: o.InitWord = "thing"
) -> None:
    """Teach a model a new word, and nothing else (textual inversion)."""
    from gradina.training.data.image_folder import read_image_folder
    from gradina.training.finetune import methods

    pictures = read_image_folder(folder, word, run.out)
    with FinetuneCommand("textual_inversion", config, run) as command:
        data = command.data(pictures)
        method = methods.textual_inversion(command.model, data, word, init_word, command.config)
        prompts = run.prompt or [word, f"{word} riding a horse", f"{word} on a pink background"]
        command.train(method, data, pictures, prompts, words=(word, init_word))


@verb(
    "imagic_finetune",
    without="prior vectors accumulate warmup text_rate caption_dropout ema flip random_crop prompt",
    out="runs/imagic",
    sample_every=500,
)
def imagic(
    config: FinetuneConfig, run: Run, picture: o.Picture, prompt: o.TargetPrompt, states_steps: o.TextSteps = None
) -> None:
    """Change what a picture shows, by words (Imagic); afterwards `--edit` draws it at any strength."""
    from gradina.training.data.captioned_image import CaptionedImage
    from gradina.training.finetune import methods
    from gradina.weights.formats.imagic import read_states

    pictures = [CaptionedImage(Path(picture), prompt)]
    if not Path(picture).is_file():
        raise RecipeError(f"{picture}: there is no such picture")
    out, shared = Path(run.out), {f.name: getattr(config, f.name) for f in fields(NoiseLaw)}
    shared |= {"batch": config.batch, "checkpointing": config.checkpointing, "seed": config.seed}
    first = config_for("imagic_embedding", steps=states_steps, rank=config.rank or FinetuneConfig.rank, **shared)
    with FinetuneCommand("imagic_embedding", first, replace(run, out=str(out / "1-text"))) as command:
        data = command.data(pictures)
        method = methods.imagic_embedding(command.model, data, prompt, command.config)
        embedding = command.train(method, data, pictures, [prompt], quietly=True)
    if embedding is None:
        return
    loaded = command.model if config.rank is not None else None
    with FinetuneCommand("imagic_finetune", config, replace(run, out=str(out / "2-picture")), loaded) as command:
        states = read_states(embedding, command.model.text.config.width)
        data = command.data(pictures)
        method = methods.imagic_finetune(command.model, data, states, command.config)
        edit = command.train(method, data, pictures, [prompt])
        if edit is not None:
            base = edit.parent / "model"
            height, width = (command.model.vae.config.factor * n for n in data.largest[1:])
            request = Request(prompt=prompt, seed=config.seed, width=width, height=height)
            typer.echo(_over_etas(base if base.is_dir() else run.model, request, edit, out))


def _over_etas(model: Path | str | None, request: Request, edit: Path, out: Path) -> Path:
    """The edit at several shares of the prompt, side by side, as a file."""
    from gradina.images import grid
    from gradina.pipeline.generate import generate
    from gradina.pipeline.load import load

    loaded = load(model)
    requests = (replace(request, edit=(str(edit), eta)) for eta in ETAS)
    images = [picture.image for one in requests for picture in generate(loaded, one)]
    with atomic_write(out / "strip.png") as file:
        grid.strip(images, [f"{eta:g}" for eta in ETAS]).save(file, "PNG")
    return out / "strip.png"


class FinetuneCommand(ExitStack):
    """What the verbs share: the loaded model, the data, and the run with its progress."""

    def __init__(self, method: str, config: FinetuneConfig, run: Run, model: StableDiffusion | None = None) -> None:
        import torch

        from gradina.pipeline.load import load
        from gradina.runtime.device import pick_device, pick_dtype, use_threads
        from gradina.training.data.latents import Crop

        super().__init__()
        use_threads(run.threads)
        self.method, self.run, self.out = method, run, Path(run.out)
        for folder in () if run.dry_run else (self.out, cache_folder()):
            check_writable_folder(folder)
        chosen = pick_dtype(run.dtype, pick_device("cpu"))
        if chosen == torch.float16:
            raise RecipeError("dtype: fp16 is too narrow for training; take bf16 or fp32")
        self.config = replace(config, precision="bfloat16" if chosen == torch.bfloat16 else "float32")
        self.crop = Crop(chance=run.random_crop, flip=run.flip, enlarge=run.enlarge)
        dtype = "fp32" if config.rank is None or chosen == torch.float32 else "bf16"
        self.model = model or load(run.model, device="cpu", dtype=dtype, plain=True)
        self.enter_context(preparations_shown(run.quiet))

    def data(self, pictures: Sequence[CaptionedImage]) -> LatentDataset:
        """The latents of pictures."""
        from gradina.training.data.latents import encode_pictures

        defaults, side = self.model.defaults, self.run.size
        return encode_pictures(self.model, pictures, self.crop, side**2 if side else defaults.width * defaults.height)

    def train(
        self,
        method: Method,
        data: LatentDataset,
        pictures: Sequence[CaptionedImage],
        prompts: Sequence[str],
        validation: LatentDataset | None = None,
        words: tuple[str | None, str | None] = (None, None),
        quietly: bool = False,
    ) -> Path | None:
        """Prints the cost, and trains; returns the result's path, or None after a dry run."""
        from gradina.training.finetune.memory_estimate import check_memory, estimate, free_memory
        from gradina.training.finetune.run import finetune, fingerprint_of

        self.model, config = method.state.model, self.config
        cost = estimate(method, config, data.largest)
        typer.echo(f"{cost}; {config.steps} steps of {config.batch * config.accumulate} pictures", err=True)
        check_memory(cost, config, free_memory())
        if self.run.dry_run:
            return None
        inputs, every = (_hashed(pictures), asdict(self.crop), self.run.size, list(words)), self.run.sample_every
        fingerprint = fingerprint_of(self.method, self.model, config, *inputs)
        running = finetune(method, config, self.out, fingerprint, prompts, every, validation=validation)
        result = watched(running, self.out, self.run.quiet, print_note)
        if not quietly:
            typer.echo(result)
        return result


def _hashed(pictures: Sequence[CaptionedImage]) -> list[tuple[object, ...]]:
    """What decides what is learned from pictures: a hash, the caption, and the number of repeats, if above one."""
    rows = ((hashlib.sha256(one.data()).hexdigest(), one.caption, one.repeats) for one in pictures)
    return [row if row[-1] > 1 else row[:-1] for row in rows]
