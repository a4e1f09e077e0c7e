"""The verbs about files: info, encode, decode, models, convert, push."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from gradina.apps.cli import options as o
from gradina.apps.cli.generate import open_model
from gradina.apps.cli.output import check_distinct, check_target, save_image
from gradina.errors import RequestError
from gradina.files import check_model_folder, check_writable, with_ending
from gradina.request_checks import check_choice


def info(picture: o.Picture, as_json: o.Json = False) -> None:
    """Show what is written in a picture's file."""
    from gradina.images.metadata import read_picture
    from gradina.images.picture import to_json

    record = read_picture(picture, strict=False)
    if as_json:
        typer.echo(to_json(record.request, strict=False))
        return
    model = record.model or {}
    named = " ".join(filter(None, (model.get("name"), model.get("hash"), model.get("source"))))
    rows = {"source": record.source} | ({"model": named} if named else {})
    rows |= {name: model[name] for name in ("vae", "dtype", "engine") if name in model}
    rows |= {k: v for k, v in json.loads(to_json(record.request, strict=False)).items() if v not in (None, "", [])}
    for name, value in rows.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"{name:18} {shown if len(shown) < 2000 else shown[:200] + ' ...'}")
    for note in record.notes:
        typer.echo(f"{'note':18} {note}")


def encode(
    picture: o.Picture,
    output: o.Target = None,
    model: o.Model = None,
    vae: o.Vae = None,
    variant: o.Variant = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
) -> None:
    """Turn a picture into a small file of latents."""
    from gradina.images.open import SAVE_OPTIONS, open_picture
    from gradina.tasks import codec

    opened = open_picture(picture, "picture")
    target = check_target("--output", output or str(with_ending(Path(picture), ".latents")))
    if Path(target).suffix.lower() in SAVE_OPTIONS:
        raise RequestError(f"--output: got {target}, a picture's name, for latents; end it in .latents")
    check_distinct(("PICTURE", picture), ("--output", target))
    before = Path(picture).stat().st_size
    loaded = open_model(model, threads, variant=variant, device=device, dtype=dtype, vae=vae)
    latents = codec.encode(loaded, opened)
    latents.save(target)
    compression = codec.measure(loaded, opened, latents)
    typer.echo(target)
    after = Path(target).stat().st_size
    typer.echo(f"{'values':18} {compression.ratio:.1f} times fewer")
    typer.echo(
        f"{'bytes':18} {after} ({before} in the picture's file, {3 * opened.width * opened.height} in its pixels)"
    )
    typer.echo(f"{'PSNR':18} {compression.psnr:.1f} dB after decoding")


def decode(
    latents: o.LatentsFile,
    output: o.Target = None,
    model: o.RecordedModel = None,
    vae: o.RecordedVae = None,
    variant: o.Variant = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
) -> None:
    """Turn a file of latents back into a picture."""
    from gradina.images.open import SAVE_OPTIONS
    from gradina.tasks import codec

    read = codec.open_latents(latents)
    target = check_target("--output", output or str(with_ending(Path(latents), ".png")), SAVE_OPTIONS)
    name, own = model or read.model or None, vae or read.vae or None
    loaded = open_model(name, threads, variant=variant, device=device, dtype=dtype, vae=own)
    save_image(codec.decode(loaded, read), target)


def models() -> None:
    """List the models that are here."""
    from gradina.weights.registry import cached, shipped

    for title, found in (("shipped", shipped()), ("in the hub's cache", cached())):
        for name, path in found.items():
            typer.echo(f"{name:32} {title:20} {_size(path):>9}  {path}")


def convert(
    source: o.ConvertSource,
    target: o.ConvertTarget,
    dtype: o.StoredDtype = None,
    variant: o.Variant = None,
    prediction: o.Prediction = None,
) -> None:
    """Convert a model between the layouts, in both directions."""
    from gradina.runtime.device import DTYPES
    from gradina.weights.convert import convert as converted

    (check_writable if target.endswith(".safetensors") else check_model_folder)(target)
    stored = None if dtype is None else DTYPES[check_choice("--dtype", dtype, tuple(DTYPES))]
    typer.echo(converted(source, target, dtype=stored, variant=variant, prediction=prediction))


def push(model: o.LocalModel, name: o.HubName) -> None:
    """Put a model on the hub."""
    from gradina.pipeline.load import load
    from gradina.pipeline.load import push as pushed

    typer.echo(pushed(load(model, device="cpu", dtype="fp32"), name))  # nothing is rounded on the way


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return f"{sum(p.stat().st_size for p in files) / 1e6:.1f} MB"
