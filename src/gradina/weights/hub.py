"""The hub: models fetched through its cache and pushed to it; only the files that are needed, errors of one line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from gradina.errors import HubError
from gradina.weights.components import Components

HTTPError: type[Exception] = getattr(errors, "HTTPError", OSError)  # of httpx or requests, by the hub's version
WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
REST = (
    "model_index.json", "gradina.json", "README.md", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/*.json", "tokenizer/merges.txt", "clip/*.json", "clip/merges.txt",
    "clip/model.safetensors",
)  # fmt: skip
VAE = ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
PAIR = (
    "config.json", "preprocessor_config.json", "processor_config.json", "phrases.json", "vocab.json", "merges.txt",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "model.safetensors",
    "model-*-of-*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
CACHE_ONLY = "is not in the cache, and HF_HUB_OFFLINE is set; unset it, or give a folder or file that is here"
UNREACHABLE = "is not in the cache, and the hub cannot be reached; connect, or give a folder or file ({})"
ANSWERS: tuple[tuple[type[Exception], str], ...] = (  # of the hub, the narrower kinds before the wider
    (errors.GatedRepoError, "its owner asks for consent; accept the terms on its page, then `hf auth login`"),
    (errors.RepositoryNotFoundError,
     "the hub has no such model, or not for you; check the name, or log in with `hf auth login`"),
    (errors.LocalEntryNotFoundError, ""),  # whether it is on the hub is not known
    (errors.EntryNotFoundError, "the hub has the model, but not that file in it; check the name"),
    (errors.HFValidationError, 'is no name of the hub; expected "owner/name"'),
    (errors.LocalTokenNotFoundError, "the hub does not know you; log in with `hf auth login`"),
    (errors.HfHubHTTPError, "the hub refuses ({})"),
)  # fmt: skip
ONLY = {  # what is fetched of one network, which lies in a repository of its own or in a model's
    "pair": [*PAIR, *(f"clip/{file}" for file in PAIR)],
    "vae": [*VAE, *(f"vae/{file}" for file in VAE)],
    "taesd": ["config.json", "diffusion_pytorch_model.safetensors"],
}


def fetch(name: str, variant: str | None = None, pickles: bool = False) -> Path:
    """The folder of "owner/name", or the file "owner/name/file.safetensors", in the hub's cache; fetched if need be.

    Where a network has no file in that variant, those that it has are fetched; `pickles` among them if asked for.
    HF_HUB_OFFLINE, HF_HUB_CACHE and HF_TOKEN are obeyed. Raises HubError.
    """
    with _hub_errors(name):
        if name.count("/") > 1:
            return _fetch_file(name)
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=load_patterns(variant)))
        missing = [stem for stem in WEIGHTS if not any(folder.glob(f"{stem}*.safetensors"))]
        nowhere = len(missing) == len(WEIGHTS) and variant and not pickles
        if missing and not nowhere and not constants.HF_HUB_OFFLINE:
            others = [pattern for stem in missing for pattern in _fallbacks(stem, variant, pickles)]
            huggingface_hub.snapshot_download(name, allow_patterns=others)
        return folder


def fetch_only(name: str, kind: str) -> Path:
    """The folder of "owner/name" in the hub's cache with one network (see ONLY), or the file named. Raises HubError."""
    with _hub_errors(name):
        if name.count("/") > 1:
            return _fetch_file(name)
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=ONLY[kind]))


def _fetch_file(name: str) -> Path:
    owner, repository, file = name.split("/", 2)
    return Path(huggingface_hub.hf_hub_download(f"{owner}/{repository}", file))


def load_patterns(variant: str | None = None) -> list[str]:
    """Patterns of the files that loading needs: one variant, no pickles, no safety checker."""
    return [*REST, *(stem + suffix for stem in WEIGHTS for suffix in _suffixes(variant))]


def _fallbacks(stem: str, variant: str | None, pickles: bool) -> list[str]:
    """Patterns of files in place of those of a network that has no safetensors file in that variant."""
    patterns = [stem + suffix for suffix in _suffixes(None if variant else "fp16")]
    old = stem.replace("/model", "/pytorch_model")
    return patterns + [old + suffix for each in (variant, None) for suffix in _suffixes(each, "bin") if pickles]


def _suffixes(variant: str | None, kind: str = "safetensors") -> list[str]:
    """The endings of a file, of shards, and of their index, which is named in two ways."""
    dot = f".{variant}" if variant else ""
    return list(dict.fromkeys(
        (f"{dot}.{kind}", f"{dot}-*-of-*.{kind}", f"{dot}.{kind}.index.json", f".{kind}.index{dot}.json")
    ))  # fmt: skip


def push(components: Components, name: str, *, private: bool = False) -> str:
    """Uploads a model as "owner/name" in the diffusers layout, with its card; returns its URL. Raises HubError."""
    from gradina.weights.formats.diffusers import write_folder

    with tempfile.TemporaryDirectory() as scratch:
        if name.count("/") != 1:
            raise HubError(f'{name}: is no name of the hub; expected "owner/name"')
        folder = Path(scratch) / name.rpartition("/")[2]
        write_folder(replace(components, name=name), folder)
        with _hub_errors(name):
            api = huggingface_hub.HfApi()
            url = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model of Gradina")
            return str(url)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turns the errors of the hub and the network into a HubError that says what to do."""
    try:
        yield
    except (errors.EntryNotFoundError, errors.HFValidationError, OSError, HTTPError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        answer = next((answer for kind, answer in ANSWERS if isinstance(error, kind)), "")
        answer = answer or (CACHE_ONLY if constants.HF_HUB_OFFLINE else UNREACHABLE)
        raise HubError(f"{name}: {answer.format(first_line)}") from error
