"""A contrastive pair as transformers keeps it: one folder of weights, settings, vocabulary, and how pixels are read.

And what transformers has no place for: phrases, of which captions can be composed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Resampling

from gradina.errors import WeightsError
from gradina.files import MODEL_SUFFIXES, atomic_folder
from gradina.models.clip import CLIP, ConvConfig, TextConfig, VisionConfig
from gradina.models.tokenizer import Tokenizer
from gradina.weights.formats import diffusers_configs
from gradina.weights.formats.clip_preprocessor import Rgb, pixels_from, pixels_to
from gradina.weights.key_tables import CONV_PAIR, PAIR
from gradina.weights.remap import Table, sources, write
from gradina.weights.safetensors import build, find_weights, model_hash, open_weights, save_weights

T = TypeVar("T")
Phrases = tuple[tuple[str, ...], ...]

# What transformers fills in where a CLIPTextConfig leaves it out.
TEXT_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # buffers of older versions
CONV_MODEL = {"model_type": "gradina_clip"}  # nothing that transformers knows, and might fill with other weights
STEM = "model"  # of the file of weights, or of its index
PIXELS, PROCESSOR, PHRASES = "preprocessor_config.json", "processor_config.json", "phrases.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """A text tower and an image tower that agree, and what goes before each: vocabulary, and colours."""

    clip: CLIP
    tokenizer: Tokenizer
    mean: Rgb = (0.5, 0.5, 0.5)  # of pixels in 0..1: with these two they become -1..1
    std: Rgb = (0.5, 0.5, 0.5)
    resample: Resampling = Resampling.BICUBIC  # the filter that makes pictures as small as the tower's
    phrases: Phrases = ()  # beginnings, and then their continuations, "" among them: captions are composed of one each
    name: str = ""
    files: tuple[Path, ...] = ()  # of weights, as they were read

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.clip.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return self.clip.logit_scale.dtype

    @property
    def size(self) -> int:
        """How wide and high the pictures are that the image tower sees, in pixels."""
        return self.clip.vision.config.size

    @cached_property
    def mark(self) -> str:
        """All that decides a picture's embedding, as a hash: weights, shape, dtype, and how pixels are read."""
        read = (self.mean, self.std, int(self.resample))
        decides = (model_hash(self.files), self.clip.vision.config, str(self.dtype), *read)
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]


def read_pair(path: str | Path, dtype: torch.dtype | None = None, name: str | None = None) -> Pair:
    """The pair in a transformers folder of a CLIPModel, such as openai/clip-vit-large-patch14; its weights are mapped.

    Colours are OpenAI's where the folder does not say. Raises WeightsError.
    """
    folder = Path(path)
    text, vision = _read(folder / "config.json", _towers)
    weights = open_weights(find_weights(folder, STEM))
    clip = build(
        lambda vision: CLIP(text, vision),
        vision,
        weights,
        partial(sources, table=_table(vision), dialect="transformers"),
        dropped=POSITIONS,
        dialect="CLIPModel of transformers",
        dtype=dtype,
    )
    mean, std, resample = _pixels(folder, vision.size)
    return Pair(
        clip=clip,
        tokenizer=_tokenizer(folder, text),
        mean=mean,
        std=std,
        resample=resample,
        phrases=_read(folder / PHRASES, _phrases) if (folder / PHRASES).is_file() else (),
        name=name or folder.resolve().name,
        files=weights.files,
    )


def write_pair(pair: Pair, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a folder that transformers' CLIPModel and CLIPProcessor load, whole or not at all. Raises DiskError.

    Where the image tower is one of convolutions, the folder is alike but for its settings, and Gradina alone loads it.
    """
    text, vision = pair.clip.text.config, pair.clip.vision.config
    content = {
        **({"architectures": ["CLIPModel"], "model_type": "clip"} if isinstance(vision, VisionConfig) else CONV_MODEL),
        "projection_dim": vision.projection,
        "logit_scale_init_value": 2.6592,
        "text_config": diffusers_configs.text_to(text),
        "vision_config": diffusers_configs.vision_to(vision),
    }
    ours = {name: x if dtype is None else x.to(dtype) for name, x in pair.clip.state_dict().items()}
    with atomic_folder(path) as folder:
        _write_json(folder / "config.json", content)
        _write_json(folder / PIXELS, pixels_to(vision.size, pair.mean, pair.std, pair.resample))
        if pair.phrases:
            _write_json(folder / PHRASES, pair.phrases)
        pair.tokenizer.save(folder)
        save_weights(write(ours, sources(ours, _table(vision), "transformers")), folder / f"{STEM}.safetensors")


def copy_pair(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Copies the files of a pair's folder into a new one, with their numbers as `dtype` where it asks for others.

    Raises WeightsError for a pair that is no longer there.
    """
    if not source.is_dir():
        raise WeightsError(f"{source}: the contrastive pair that goes with the model is gone; load the model again")
    target.mkdir()
    for path in sorted(source.iterdir()):
        if dtype is not None and path.suffix == ".safetensors":
            weights = open_weights(path)
            cast = {name: x.to(dtype) if x.is_floating_point() else x for name, x in weights.tensors.items()}
            save_weights(cast, target / path.name, weights.metadata)
        elif path.is_file() and path.suffix in MODEL_SUFFIXES:
            shutil.copyfile(path, target / path.name)


def _table(vision: VisionConfig | ConvConfig) -> Table:
    return PAIR if isinstance(vision, VisionConfig) else CONV_PAIR


def _towers(content: Any) -> tuple[TextConfig, VisionConfig | ConvConfig]:
    width = content["projection_dim"]
    text = diffusers_configs.text_from(TEXT_DEFAULTS | content["text_config"], projection=width)
    return text, diffusers_configs.vision_from(content["vision_config"], projection=width)


def _pixels(folder: Path, side: int) -> tuple[Rgb, Rgb, Resampling]:
    """From the file for pictures alone, or the one that newer versions write for pictures and texts."""
    if (folder / PIXELS).is_file():
        return _read(folder / PIXELS, lambda json: pixels_from(json, side))
    if (folder / PROCESSOR).is_file():
        return _read(folder / PROCESSOR, lambda json: pixels_from(json["image_processor"], side))
    return pixels_from({}, side)


def _tokenizer(folder: Path, text: TextConfig) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    got = (len(tokenizer), tokenizer.length, tokenizer.eos)
    if got[0] > text.vocabulary or got[1] > text.length or got[2] != text.eos:
        expected = (text.vocabulary, text.length, text.eos)
        raise WeightsError(
            f"{folder}: its tokenizer (entries, length, end of text) is {got}, and its text tower {expected}; "
            "they are not of one model, fetch it again"
        )
    return tokenizer


def _phrases(content: Any) -> Phrases:
    parts = tuple(tuple(part) for part in content if isinstance(part, list))
    if len(parts) != len(content) or not all(parts) or not all(isinstance(x, str) for part in parts for x in part):
        raise ValueError("expected a list of lists of texts")
    return parts


def _read(path: Path, reader: Callable[[Any], T]) -> T:
    try:
        return reader(json.loads(path.read_text(encoding="utf-8")))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file; expected the folder of a CLIPModel") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: is not as a CLIPModel has it ({error!r}); fetch the folder again") from error


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
