"""What lies in a model folder of the diffusers layout; without torch, so that listing models is quick."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradina.errors import WeightsError

log = logging.getLogger(__name__)

INDEX = "model_index.json"
CARD = "README.md"
SETTINGS = "gradina.json"  # what diffusers has no file for: the defaults of a request
PAIR = "clip"  # the folder of the contrastive pair that goes with a model

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
SUPPORTED = (*CLASSES, "tokenizer", "scheduler")
IGNORED = ("safety_checker", "feature_extractor", "requires_safety_checker", "image_encoder")  # no picture needs them
UNSUPPORTED = (  # components that only pipelines of other families have
    "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "controlnet", "adapter", "motion_adapter",
    "prior", "decoder", "movq", "vqvae", "vqgan", "bert", "image_unet", "text_unet", "qformer", "depth_estimator",
    "low_res_scheduler", "image_noising_scheduler", "image_normalizer",
)  # fmt: skip
EXPECTED = f"expected {', '.join(SUPPORTED)} of Stable Diffusion 1.x or 2.x"

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # file names
PICKLE_STEMS = {"model": "pytorch_model"}  # transformers names its pickles otherwise
SHARD = re.compile(r"-\d+-of-\d+\.")
PREFERRED_VARIANTS = ("", "fp32", "bf16", "fp16")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model: it has an index, or all components without one."""
    return (folder / INDEX).is_file() or all((folder / name / "config.json").is_file() for name in CLASSES)


def unsupported_reason(folder: Path, index: Mapping[str, Any]) -> str:
    """Why a folder with that index ({}: none) is of another family, by its components; "" if it is supported."""
    listed = _components(index)
    there = [name for name in (*CLASSES, *UNSUPPORTED) if (folder / name / "config.json").is_file()]
    pipeline = str(index.get("_class_name", "pipeline"))[:80]
    others = [name for name in UNSUPPORTED if name in (listed if index else there)]
    if others:
        return f"is a {pipeline} with {' and '.join(others)}, another family; {EXPECTED}"
    for name, classes in CLASSES.items():
        library, kind = listed.get(name, ("", ""))
        if library in ("diffusers", "transformers") and kind not in classes:
            return f"is a {pipeline} whose {name} is a {kind[:80]}, another family; {EXPECTED}"
    missing = [name for name in CLASSES if name not in listed and name not in there]
    return f"is a {pipeline} without {' and '.join(missing)}; {EXPECTED}" if missing else ""


def unread_components(index: Mapping[str, Any]) -> list[str]:
    """The components that are not read here although pictures elsewhere may need them."""
    return [name for name in _components(index) if name not in (*SUPPORTED, *IGNORED)]


def _components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The components of a pipeline: library and class by name."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {
        name: (str(library), str(kind))
        for name, (library, kind) in pairs.items()
        if not name.startswith("_") and library is not None and kind is not None
    }


def select_weights(
    folders: Mapping[str, Path], variant: str | None, pickles: bool = False, name: str = ""
) -> dict[str, Path]:
    """The file or index of each network, by the folders in which they lie; `name` is how the user calls the model.

    Where only some networks have the variant, the others are read in another, with a warning. Pickles are considered
    only with `pickles`, and only where no safetensors file is as good. Raises WeightsError for a variant that none
    has, and for a network that has no weights.
    """
    selected, wanted = {}, variant or ""
    found = {network: weight_files(folder, STEMS[network], pickles) for network, folder in folders.items()}
    nowhere = bool(variant) and not any(wanted in files for files in found.values())
    for network, files in found.items():
        if not files or nowhere:
            raise _no_weights(folders[network], STEMS[network], variant, name)
        order = (wanted, *PREFERRED_VARIANTS, *sorted(files))
        selected[network] = files[next(each for each in order if each in files)]
    others = [str(selected[network]) for network, files in found.items() if wanted not in files]
    if others:
        lacking = f"in the variant {variant}" if variant else "without a variant"
        log.warning("%s: not all of its networks are there %s; read instead: %s", name, lacking, " and ".join(others))
    return selected


def find_weights(folder: Path, stem: str) -> Path:
    """The safetensors file or index without a variant. Raises WeightsError, listing what is there."""
    try:
        return weight_files(folder, stem)[""]
    except KeyError:
        raise _no_weights(folder, stem) from None


def weight_files(folder: Path, stem: str, pickles: bool = False) -> dict[str, Path]:
    """The files and indexes of weights of one network, by their variant; "" is none."""
    found = _by_variant(folder, stem, "safetensors")
    return _by_variant(folder, PICKLE_STEMS.get(stem, stem), "bin") | found if pickles else found


def _by_variant(folder: Path, stem: str, suffix: str) -> dict[str, Path]:
    """stem.suffix, stem.VARIANT.suffix, and their indexes, which are named in two ways."""
    name = re.compile(rf"{stem}(?:\.([\w-]+))?\.{suffix}(?:\.index(?:\.([\w-]+))?\.json)?")
    files = (path for path in folder.glob(f"{stem}*") if path.is_file() and not SHARD.search(path.name))
    indexes_first = sorted(files, key=lambda path: (path.suffix != ".json", path.name))  # whole files override them
    matches = ((name.fullmatch(path.name), path) for path in indexes_first)
    return {match[1] or match[2] or "": path for match, path in matches if match}


def _no_weights(folder: Path, stem: str, variant: str | None = None, name: str = "") -> WeightsError:
    """The error for a network without weights; where pickles would do, it says how to convert them."""
    safe = weight_files(folder, stem)
    unsafe = {key: path for key, path in weight_files(folder, stem, pickles=True).items() if key not in safe}
    option = f" --variant {shlex.quote(variant)}" if variant else ""
    command = f"`gradina convert {shlex.quote(name)} {shlex.quote(Path(name).name + '-safe')}{option}`"
    if name and unsafe and (not safe or variant in unsafe):
        pickle = unsafe.get(variant or "", min(unsafe.values()))
        return WeightsError(f"{pickle}: is a pickle, which can run programs; {command} reads it safely")
    dotted = f"{stem}.{variant}" if variant else stem
    there = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".ckpt"))
    advice = "take another variant" if safe else "take a folder with safetensors"
    if name and not safe and not Path(name).exists():  # on the hub, of which no pickles are fetched
        advice += f", or, if it has pickles there, {command}"
    return WeightsError(f"{folder}: has no {dotted}.safetensors; {advice} (there is: {', '.join(there) or 'nothing'})")
