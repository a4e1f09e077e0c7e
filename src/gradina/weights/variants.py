"""Which files of a model's folder hold its networks: variants, shards, and what is there in place of others."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from gradina.errors import WeightsError
from gradina.weights.safetensors import Weights

log = logging.getLogger(__name__)

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # file names
OF_PICKLES = {"text_encoder": "pytorch_model"}  # where they are called otherwise
Opener = Callable[[Path], Weights]  # of a file, or an index of shards
SHARD = re.compile(r"-\d+-of-\d+\.")
PREFERRED = ("", "fp32", "bf16", "fp16")  # variants, of those that nobody asked for


def choose(folders: Mapping[str, Path], variant: str | None, pickles: bool = False, name: str = "") -> dict[str, Path]:
    """The file or index of each network, by the folders in which they lie; `name` is how the user calls the model.

    A variant that some networks have is taken for those; where a network has not what is asked for, what it has is
    taken, and a note says so. Pickles are taken only where they may be, and where no safetensors file is as good.
    Raises WeightsError for a variant that none has, and for a network that has nothing.
    """
    chosen, asked = {}, variant or ""
    found = {part: files(folder, part, pickles) for part, folder in folders.items()}
    nowhere = bool(variant) and not any(asked in there for there in found.values())
    for part, there in found.items():
        if not there or nowhere:
            _refuse(folders[part], part, variant, name)
        named = (asked, *PREFERRED, *sorted(there))
        chosen[part] = there[next(each for each in named if each in there)]
    others = [str(chosen[part]) for part, there in found.items() if asked not in there]
    if others:
        lacking = f"in the variant {variant}" if variant else "without a variant"
        taken = " and ".join(others) + (" is" if len(others) == 1 else " are") + " taken"
        log.warning("%s: not all of its parts are there %s; %s", name, lacking, taken)
    return chosen


def files(folder: Path, part: str, pickles: bool) -> dict[str, Path]:
    """The files and indexes of weights of one network, by their variant; "" is none."""
    found = _named(folder, STEMS[part], "safetensors")
    return _named(folder, OF_PICKLES.get(part, STEMS[part]), "bin") | found if pickles else found


def _named(folder: Path, stem: str, kind: str) -> dict[str, Path]:
    """stem.kind, stem.VARIANT.kind, and their indexes, which are named in two ways."""
    name = re.compile(rf"{stem}(?:\.([\w-]+))?\.{kind}(?:\.index(?:\.([\w-]+))?\.json)?")
    there = (path for path in folder.glob(f"{stem}*") if path.is_file() and not SHARD.search(path.name))
    indexes_first = sorted(there, key=lambda path: (path.suffix != ".json", path.name))  # so that a whole file stands
    matches = ((name.fullmatch(path.name), path) for path in indexes_first)
    return {match[1] or match[2] or "": path for match, path in matches if match}


def _refuse(folder: Path, part: str, variant: str | None, name: str) -> None:
    """Raises WeightsError for a network without files; where pickles would do, it says how to convert them."""
    safe = files(folder, part, pickles=False)
    unsafe = {key: path for key, path in files(folder, part, pickles=True).items() if key not in safe}
    option = f" --variant {shlex.quote(variant)}" if variant else ""
    command = f"`gradina convert {shlex.quote(name)} {shlex.quote(Path(name).name + '-safe')}{option}`"
    if unsafe and (not safe or variant in unsafe):
        pickle = unsafe.get(variant or "", min(unsafe.values()))
        raise WeightsError(f"{pickle}: is a pickle, which can run programs; {command} reads it safely")
    dotted = f"{STEMS[part]}.{variant}" if variant else STEMS[part]
    there = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".ckpt"))
    advice = "take another variant" if safe else "take a folder with safetensors"
    if not safe and not Path(name).exists():  # on the hub, of which no pickles are fetched
        advice += f", or, if it has pickles there, {command}"
    raise WeightsError(f"{folder}: has no {dotted}.safetensors; {advice} (there is: {', '.join(there) or 'nothing'})")
