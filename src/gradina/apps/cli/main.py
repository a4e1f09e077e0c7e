"""The command line: `gradina "a teddy bear" -o bear.png`, and a verb for everything else.

Heavy modules are imported by the verb that needs them, so that --help and mistakes are answered at once.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import typer
import typer.core

import gradina
from gradina.apps.cli import bench, files, finetune, generate, search, train
from gradina.apps.cli.output import logged, one_line, print_note
from gradina.errors import GradinaError

USAGE = """Stable Diffusion, whole, in Python.

`gradina "a prompt"` is short for `gradina generate "a prompt"`.
"""


class Verbs(typer.core.TyperGroup):
    """The verbs; their help ends with the options of `generate`, which needs no name."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Adds the options that may follow a prompt."""
        generate = self.get_command(ctx, "generate")
        if generate is not None:
            formatter.write_paragraph()
            formatter.write_text("Of `gradina PROMPT...`, which is `gradina generate PROMPT...`:")
            generate.format_options(ctx, formatter)


app = typer.Typer(
    cls=Verbs,
    name="gradina",
    help=USAGE,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

VERBS: dict[str, Callable[..., None]] = {
    "generate": generate.generate,
    "again": generate.again,
    "info": files.info,
    "encode": files.encode,
    "decode": files.decode,
    "caption": search.caption,
    "search": search.search,
    "models": files.models,
    "convert": files.convert,
    "push": files.push,
    "train": train.train,
    "finetune": finetune.finetune,
    "dreambooth": finetune.dreambooth,
    "invert": finetune.invert,
    "imagic": finetune.imagic,
    "bench": bench.bench,
    "tune": bench.tune,
}
for name, verb in VERBS.items():
    app.command(name)(verb)


@app.callback(invoke_without_command=True)
def about(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Options before the verbs."""
    if version:
        typer.echo(f"gradina {gradina.__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; an error is one line on standard error and exit code 2."""
    warnings.showwarning = lambda message, *_, **__: print_note(str(message))
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if arguments[0] not in (*VERBS, "-h", "--help", "--version"):
        arguments = ["generate", *arguments]
    try:
        with logged(cache(print_note), "gradina", range(logging.WARNING, 100)):
            status = app(arguments, prog_name="gradina", standalone_mode=False)
    except GradinaError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        return _fail("out of memory; draw smaller pictures")
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistake in the options themselves
            return _fail(f"{error.format_message()} (see `gradina --help`)")
        raise
    if status == 130:  # Ctrl-C, which has its own way through typer
        return _fail("stopped", 130)
    return status if isinstance(status, int) else 0


def _fail(message: str, code: int = 2) -> int:
    print(f"gradina: {one_line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
