"""The verbs that draw: generate and again, with grids, films and strips."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.grids import Axis, axis, cell_label, cells, check_grid, parse
from gradina.apps.cli.output import check_files, is_folder, output_path, print_note, progress, save_image, slug
from gradina.errors import RequestError, WeightsError
from gradina.files import unused_path, with_ending
from gradina.images.picture import Picture
from gradina.request import Defaults, Request

if TYPE_CHECKING:
    from PIL import Image

    from gradina.pipeline.model import StableDiffusion

log = logging.getLogger(__name__)


def generate(
    prompts: o.Prompts,
    output: o.Output = None,
    model: o.Model = None,
    negative_prompt: o.Negative = "",
    steps: o.Steps = None,
    guidance_scale: o.Scale = None,
    guidance_rescale: o.Rescale = 0.0,
    guidance_interval: o.Interval = None,
    sampler: o.Sampler = None,
    schedule: o.Schedule = None,
    eta: o.Eta = None,
    rates: o.Rates = None,
    seed: o.Seed = None,
    width: o.Width = None,
    height: o.Height = None,
    images: o.Images = 1,
    init_image: o.InitImage = None,
    strength: o.Strength = 0.8,
    mask_image: o.MaskImage = None,
    lora: o.Lora = None,
    concept: o.Concept = None,
    edit: o.Edit = None,
    reuse: o.Reuse = 1,
    grid: o.Grid = None,
    film: o.Film = None,
    strip: o.Strip = None,
    variant: o.Variant = None,
    prediction: o.Prediction = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    engine: o.Engine = None,
    low_memory: o.LowMemory = False,
    tiny: o.Tiny = None,
    vae: o.Vae = None,
    preset: o.Preset = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Draw pictures from prompts."""
    request = Request(
        prompt=tuple(prompts),
        negative_prompt=negative_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        guidance_interval=parse("guidance_interval", guidance_interval),
        sampler=cast(Any, sampler),
        schedule=cast(Any, schedule),
        eta=eta,
        rates=cast(Any, rates),
        seed=seed,
        width=width,
        height=height,
        images=images,
        init_image=init_image,
        strength=strength,
        mask_image=mask_image,
        loras=tuple(one for text in lora or () for one in parse("loras", text)),
        concepts=tuple(concept or ()),
        edit=parse("edit", edit),
        reuse=reuse,
    )
    axes = [axis(text) for text in grid or ()]
    check_files(request, output, film, strip)
    check_grid(axes, request, film or strip)
    if tiny and not (film or strip):
        raise RequestError(f"--tiny: got {tiny}, but no --film and no --strip, for which alone it is; add one")
    options = {"variant": variant, "prediction": prediction, "device": device, "dtype": dtype, "vae": vae}
    opened = open_model(model, threads, engine, low_memory=low_memory, tiny=tiny, **options)
    if preset is not None:
        request = with_preset(opened, request, preset)
    if axes:
        draw_grid(opened, request, axes, output, quiet)
    else:
        draw(opened, request, output, film, strip, quiet)


def again(
    picture: o.GeneratedPicture,
    output: o.AgainOutput = None,
    model: o.RecordedModel = None,
    variant: o.Variant = None,
    prediction: o.Prediction = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    engine: o.Engine = None,
    low_memory: o.LowMemory = False,
    vae: o.RecordedVae = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Make a picture again from what is written in its file."""
    from gradina.images.metadata import read_picture

    record = read_picture(picture)
    for note in record.notes:
        log.warning(note)
    target = output or str(with_ending(Path(picture), "-again.png"))
    check_files(record.request, target, None, None)
    was = record.model or {}
    name, dtype = model or was.get("source") or was.get("name"), dtype or was.get("dtype")
    try:
        options = {"variant": variant, "prediction": prediction, "device": device, "dtype": dtype}
        options["vae"] = vae or was.get("vae")
        opened = open_model(name, threads, engine or was.get("engine"), low_memory=low_memory, **options)
    except WeightsError as error:
        missing = [] if model else ["the model yourself with --model"]
        missing += ["the autoencoder with --vae"] if was.get("vae") and not vae else []
        if not missing:
            raise
        raise WeightsError(f"{error} (so says {picture}; name {', or '.join(missing)})") from error
    now = opened.about
    for what, name, found in (("by", "name", "hash"), ("with the autoencoder", "vae", "vae_hash")):
        if hash_differs(was.get(found, ""), now.get(found, "")):
            print_note(f"drawn {what} {was.get(name)} [{was[found]}], this is {now.get(name)} [{now[found]}]")
    draw(opened, record.request, target, None, None, quiet)


def hash_differs(hash_: str, own: str) -> bool:
    """Whether a recorded hash is that of another model than `own`; hashes that are no prefix of a SHA-256 never are."""
    hash_ = hash_.lower().removeprefix("0x")
    length = min(len(hash_), len(own))
    return re.fullmatch("[0-9a-f]{10,64}", hash_) is not None and length > 0 and hash_[:length] != own[:length]


def open_model(name: str | None, threads: int | None, engine: str | None = None, **options: Any) -> StableDiffusion:
    """Loads the model that the options name; `options` are those of `load`."""
    from gradina.pipeline.load import load
    from gradina.runtime.device import use_threads

    use_threads(threads)
    return load(name, engine=engine or "auto", **options)


def draw(
    model: StableDiffusion, request: Request, output: str | None, film: str | None, strip: str | None, quiet: bool
) -> None:
    """Draws a request to files, and prints their paths."""
    from gradina.images import grid
    from gradina.pipeline.generate import events
    from gradina.pipeline.plan import Plan

    count, drawn, of = len(request.prompts), 0, 0
    frames: list[Image.Image] = []  # of the first picture
    with progress(quiet) as advance:
        for event in events(model, request):
            first = drawn == 0 and bool(film or strip)
            if isinstance(event, Picture):
                frames += [event.image] if first else []
                path = output_path(event, output, alone=count == 1)
                event.save(path)
                typer.echo(path)
                drawn += 1
                continue
            done, of = (0, len(event.sigmas) - 1) if isinstance(event, Plan) else (event.i + 1, of)
            advance(f"{count} pictures" if count > 1 else "drawing", done, of)
            if first and (done < of or not done):  # the last step is shown as the picture
                frames += model.preview(event.latents[:1])
    if film:
        grid.film(frames, film)
        typer.echo(film)
    if strip:
        save_image(strip_of(frames), strip)


def with_preset(model: StableDiffusion, request: Request, name: str) -> Request:
    """The request with the settings of a preset where it leaves them open."""
    from gradina.bench.autotune import preset

    unset = Request()
    settings = preset(model, name).items()
    return replace(request, **{key: value for key, value in settings if getattr(request, key) == getattr(unset, key)})


def strip_of(frames: list[Image.Image], shown: int = 8) -> Image.Image:
    """Evenly spaced frames side by side, from the noise to the picture."""
    from gradina.images import grid

    last = len(frames) - 1
    chosen = sorted({round(i * last / (shown - 1)) for i in range(shown)})
    return grid.strip([frames[i] for i in chosen], ["noise" if i == 0 else f"step {i}" for i in chosen])


def draw_grid(model: StableDiffusion, request: Request, axes: list[Axis], output: str | None, quiet: bool) -> None:
    """Draws a request for all values of one or two fields, as one labelled grid."""
    from gradina.images import grid
    from gradina.pipeline.generate import generate as draw_pictures

    request = replace(request, seed=request.resolved(Defaults()).seed)
    changes = list(cells(axes))
    images = []
    with progress(quiet) as advance:
        for i, cell in enumerate(changes):
            advance("grid", i, len(changes))
            images += [picture.image for picture in draw_pictures(model, replace(request, **cell))]
    label = [[cell_label(name, value) for value in values] for name, values in axes]
    drawn = grid.grid(
        images,
        columns=len(axes[0][1]),
        column_labels=label[0],
        row_labels=label[1] if len(axes) > 1 else (),
        title=None if any(name == "prompt" for name, _ in axes) else request.prompts[0],
    )
    if output is None or is_folder(output):
        Path(output or ".").mkdir(parents=True, exist_ok=True)
        output = str(unused_path(Path(output or ".") / f"{slug(request.prompts[0])}-grid.png"))
    save_image(drawn, output)
