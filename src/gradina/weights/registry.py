"""The names that load() knows: what is shipped, what lies in the hub's cache, folders, files, and "owner/name".

Nothing heavy is imported here, so that models can be listed without torch.
"""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path

from gradina.errors import WeightsError
from gradina.weights.formats.diffusers_layout import INDEX, PAIR, is_model, refusal

ASSETS = Path(__file__).parents[1] / "assets"
DEFAULT = "emoji"  # the shipped model that load() takes
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.safetensors)?")


def shipped() -> dict[str, Path]:
    """The models that come with the package: name to folder."""
    return {index.parent.name: index.parent for index in sorted(ASSETS.glob(f"*/{INDEX}"))}


def cached() -> dict[str, Path]:
    """The models of our families in the hub's cache: "owner/name" to folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {}
    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        indexes = sorted(repository.glob(f"snapshots/*/{INDEX}"), key=lambda index: index.stat().st_mtime)
        known = [index.parent for index in indexes if _is_ours(index)]
        if known:
            found["/".join(repository.name.split("--")[1:])] = known[-1]
    return found


def locate(source: str | PathLike[str] | None = None, variant: str | None = None, pickles: bool = False) -> Path:
    """The folder or file that a name stands for, fetched from the hub if it is nowhere here.

    In this order: a folder or file, a shipped name, "owner/name" or "owner/name/file.safetensors" of the hub; None is
    the shipped model. `pickles` fetches those, too. Raises WeightsError where there is none, HubError where the hub
    does not give it.
    """
    here = shipped()
    if source is None:
        source = DEFAULT if DEFAULT in here else next(iter(here), DEFAULT)
    path, name = Path(source), str(source)
    if path.is_file() or is_model(path):
        return path
    if name in here:
        return here[name]
    if path.exists() and not path.is_dir():
        raise WeightsError(f"{path}: is a device or a pipe; expected a folder, or a file that can be mapped")
    if path.exists():
        raise WeightsError(f"{path}: is a folder without {INDEX}; expected the diffusers layout, or give a file in it")
    if _is_of_hub(source):
        from gradina.weights.hub import fetch

        return fetch(name, variant, pickles)
    raise WeightsError(
        f"there is no model {name!r}: no such folder or file, not shipped (there is: {', '.join(here) or 'nothing'}), "
        'and no "owner/name" of the hub'
    )


def with_pair() -> dict[str, Path]:
    """The shipped models that a contrastive pair goes with, the one that load() takes first: name to folder."""
    having = {name: path for name, path in shipped().items() if (path / PAIR / "config.json").is_file()}
    return dict(sorted(having.items(), key=lambda item: item[0] != DEFAULT))


def locate_pair(source: str | PathLike[str] | None = None) -> Path:
    """The folder of the contrastive pair that a name stands for: a model's, or a folder of a CLIPModel itself.

    The names are those of `locate`; None is the first shipped model that has a pair. Raises WeightsError, HubError.
    """
    here, having = shipped(), with_pair()
    name = str(next(iter(having), DEFAULT) if source is None else source)
    places = [Path(name)]
    if name in here:
        places.append(here[name])
    elif not Path(name).exists():
        places.append(_fetched_pair(name) if _is_of_hub(source) else locate(source))
    for folder in (folder for place in places for folder in (place / PAIR, place)):
        if (folder / "config.json").is_file():
            return folder
    raise WeightsError(
        f"{name}: has no image tower (expected {PAIR}/ in a model's folder, or a folder of a CLIPModel); "
        f"shipped with one: {', '.join(having) or 'none'}"
    )


def locate_tiny(source: str | PathLike[str]) -> Path:
    """The folder or file of the tiny decoder that a name stands for. Raises WeightsError, HubError."""
    if Path(source).exists():
        return Path(source)
    if _is_of_hub(source):
        from gradina.weights.hub import fetch, fetch_tiny

        return fetch(str(source)) if str(source).endswith(".safetensors") else fetch_tiny(str(source))
    raise WeightsError(
        f"{source}: there is no such tiny decoder; expected a folder of an AutoencoderTiny, "
        "taesd_decoder.safetensors, or an owner/name of the hub"
    )


def locate_vae(source: str | PathLike[str]) -> Path:
    """The folder or file of the autoencoder that a name stands for: its own, or a model's that has one.

    Raises WeightsError, HubError.
    """
    if Path(source).exists():
        return Path(source)
    if str(source) in shipped():
        return shipped()[str(source)]
    if _is_of_hub(source):
        from gradina.weights.hub import fetch, fetch_vae

        return fetch(str(source)) if str(source).endswith(".safetensors") else fetch_vae(str(source))
    raise WeightsError(
        f"{source}: there is no such autoencoder; expected a safetensors file, a folder, a shipped model's name, or an "
        "owner/name of the hub"
    )


def _is_of_hub(source: str | PathLike[str] | None) -> bool:
    """Whether that can be a name of the hub: no path, and nothing that begins as one."""
    return isinstance(source, str) and HUB_NAME.fullmatch(source) is not None and not source.startswith(".")


def _fetched_pair(name: str) -> Path:
    from gradina.weights.hub import fetch_pair

    return fetch_pair(name)


def _is_ours(index: Path) -> bool:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and not refusal(index.parent, content)
