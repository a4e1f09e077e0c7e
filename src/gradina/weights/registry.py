"""The names that load() accepts: shipped models, those in the hub's cache, folders, files, and "owner/name".

Nothing heavy is imported here, so that models can be listed without torch.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from gradina.errors import WeightsError
from gradina.files import read_json
from gradina.weights.formats.diffusers_layout import INDEX, PAIR, is_model_folder, unsupported_reason

ASSETS = Path(__file__).parents[1] / "assets"
DEFAULT = "emoji"  # the shipped model that load() takes
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.safetensors)?")


def shipped() -> dict[str, Path]:
    """The models that come with the package: name to folder."""
    return {index.parent.name: index.parent for index in sorted(ASSETS.glob(f"*/{INDEX}"))}


def cached() -> dict[str, Path]:
    """The models of supported families in the hub's cache: "owner/name" to folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {}
    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        indexes = sorted(repository.glob(f"snapshots/*/{INDEX}"), key=lambda index: index.stat().st_mtime)
        supported = [index.parent for index in indexes if _is_supported(index)]
        if supported:
            found["/".join(repository.name.split("--")[1:])] = supported[-1]
    return found


def locate(source: str | PathLike[str] | None = None, variant: str | None = None, pickles: bool = False) -> Path:
    """The folder or file that a name stands for, fetched from the hub if it is not on this machine.

    In this order: a folder or file, a shipped name, "owner/name" or "owner/name/file.safetensors" of the hub; None is
    the shipped model. `pickles` fetches those, too. Raises WeightsError where there is none, HubError where the hub
    does not give it.
    """
    models = shipped()
    if source is None:
        source = DEFAULT if DEFAULT in models else next(iter(models), DEFAULT)
    path, name = Path(source), str(source)
    if path.is_file() or is_model_folder(path):
        return path
    if name in models:
        return models[name]
    if path.exists() and not path.is_dir():
        raise WeightsError(f"{path}: is a device or a pipe; expected a folder, or a file that can be mapped")
    if path.exists():
        raise WeightsError(f"{path}: is a folder without {INDEX}; expected the diffusers layout, or give a file in it")
    if _is_hub_name(source):
        from gradina.weights.hub import fetch

        return fetch(name, variant, pickles)
    raise WeightsError(
        f"there is no model {name!r}: no such folder or file, not shipped (there is: {', '.join(models) or 'nothing'}),"
        ' and no "owner/name" of the hub'
    )


def shipped_with_pair() -> dict[str, Path]:
    """The shipped models that a contrastive pair goes with, the default first: name to folder."""
    found = {name: path for name, path in shipped().items() if (path / PAIR / "config.json").is_file()}
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def locate_pair(source: str | PathLike[str] | None = None) -> Path:
    """The folder of the contrastive pair that a name stands for: a model's, or a folder of a CLIPModel itself.

    The names are those of `locate`; None is the first shipped model that has a pair. Raises WeightsError, HubError.
    """
    models, having = shipped(), shipped_with_pair()
    name = str(next(iter(having), DEFAULT) if source is None else source)
    folders = [Path(name)]
    if name in models:
        folders.append(models[name])
    elif not Path(name).exists():
        folders.append(_fetch_only(name, "pair") if _is_hub_name(source) else locate(source))
    for folder in (folder for parent in folders for folder in (parent / PAIR, parent)):
        if (folder / "config.json").is_file():
            return folder
    raise WeightsError(
        f"{name}: has no image tower (expected {PAIR}/ in a model's folder, or a folder of a CLIPModel); "
        f"shipped with one: {', '.join(having) or 'none'}"
    )


def locate_taesd(source: str | PathLike[str]) -> Path:
    """The folder or file of the tiny decoder that a name stands for. Raises WeightsError, HubError."""
    expected = "a folder of an AutoencoderTiny, taesd_decoder.safetensors, or an owner/name of the hub"
    return _locate_only(source, "taesd", "tiny decoder", expected)


def locate_vae(source: str | PathLike[str]) -> Path:
    """The file or folder of the autoencoder, or of a model with one, by its name. Raises WeightsError, HubError."""
    if not Path(source).exists() and str(source) in shipped():
        return shipped()[str(source)]
    expected = "a safetensors file, a folder, a shipped model's name, or an owner/name of the hub"
    return _locate_only(source, "vae", "autoencoder", expected)


def _locate_only(source: str | PathLike[str], kind: str, what: str, expected: str) -> Path:
    if Path(source).exists():
        return Path(source)
    if _is_hub_name(source):
        return _fetch_only(str(source), kind)
    raise WeightsError(f"{source}: there is no such {what}; expected {expected}")


def _is_hub_name(source: str | PathLike[str] | None) -> bool:
    """Whether that can be a name of the hub, and is no path."""
    return isinstance(source, str) and HUB_NAME.fullmatch(source) is not None and not source.startswith(".")


def _fetch_only(name: str, kind: str) -> Path:
    from gradina.weights.hub import fetch_only

    return fetch_only(name, kind)


def _is_supported(index: Path) -> bool:
    try:
        return not unsupported_reason(index.parent, read_json(index))
    except WeightsError:
        return False
