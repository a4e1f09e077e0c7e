"""A contrastive pair as transformers keeps it, and what that has no file for: phrases to compose captions of."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeAlias

import torch
from PIL.Image import Resampling

from gradina.errors import WeightsError
from gradina.files import MODEL_SUFFIXES, atomic_folder, write_json
from gradina.models.clip import TextConfig
from gradina.models.clip_vision import CLIP, ConvConfig, VisionConfig
from gradina.models.tokenizer import Tokenizer
from gradina.weights.build import build, export
from gradina.weights.formats import diffusers_configs
from gradina.weights.formats.diffusers_layout import find_weights
from gradina.weights.json_config import Json, check_fixed, read_config
from gradina.weights.key_tables import CONV_PAIR, PAIR
from gradina.weights.remap import Table
from gradina.weights.safetensors import model_hash, open_weights, save_weights

Rgb: TypeAlias = tuple[float, float, float]
Phrases: TypeAlias = tuple[tuple[str, ...], ...]

# The defaults of transformers' CLIPTextConfig.
TEXT_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # of older versions
CONV_MODEL = {"model_type": "gradina_clip"}  # a type that transformers does not know, lest it load it as another
STEM = "model"  # of the file of weights, or of its index
PREPROCESSOR, PROCESSOR, PHRASES = "preprocessor_config.json", "processor_config.json", "phrases.json"
PREPROCESSOR_FIXED: Json = {
    "do_center_crop": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255,
}  # fmt: skip
OPENAI_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)  # of the pixels that OpenAI's CLIP was trained on, in 0..1
OPENAI_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False, kw_only=True)
class ContrastivePair:
    """A text tower and an image tower with a common embedding space, a tokenizer and preprocessing."""

    clip: CLIP
    tokenizer: Tokenizer
    mean: Rgb = (0.5, 0.5, 0.5)  # of pixels in 0..1: the defaults normalise them to -1..1
    std: Rgb = (0.5, 0.5, 0.5)
    resample: Resampling = Resampling.BICUBIC  # the filter that resizes pictures for the tower
    phrases: Phrases = ()  # beginnings, and then their continuations, "" among them: a caption has one of each
    name: str = ""
    files: tuple[Path, ...] = ()  # of weights, as they were read

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return self.clip.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters."""
        return self.clip.logit_scale.dtype

    @property
    def size(self) -> int:
        """The side of the pictures that the image tower reads, in pixels."""
        return self.clip.vision.config.size

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides a picture's embedding: weights, config, dtype and preprocessing."""
        preprocessing = (self.mean, self.std, int(self.resample))
        decides = (model_hash(self.files), self.clip.vision.config, str(self.dtype), *preprocessing)
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]


def read_pair(path: str | Path, dtype: torch.dtype | None = None, name: str | None = None) -> ContrastivePair:
    """The pair in a folder of transformers' CLIPModel, mapped, with OpenAI's pixels by default. Raises WeightsError."""
    folder = Path(path)
    text, vision = read_config(folder / "config.json", _towers_from_json)
    weights = open_weights(find_weights(folder, STEM))
    clip = build(
        lambda vision: CLIP(text, vision),
        vision,
        weights,
        _table(vision),
        "transformers",
        dropped=POSITION_IDS,
        what="CLIPModel of transformers",
        dtype=dtype,
    )
    mean, std, resample = _read_preprocessor(folder, vision.size)
    phrases = folder / PHRASES
    return ContrastivePair(
        clip=clip,
        tokenizer=_tokenizer(folder, text),
        mean=mean,
        std=std,
        resample=resample,
        phrases=read_config(phrases, _phrases_from_json, list) if phrases.is_file() else (),
        name=name or folder.resolve().name,
        files=weights.files,
    )


def write_pair(pair: ContrastivePair, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a folder that transformers loads, except a convolutional tower; whole or not at all. Raises DiskError."""
    text, vision = pair.clip.text.config, pair.clip.vision.config
    config = {
        **({"architectures": ["CLIPModel"], "model_type": "clip"} if isinstance(vision, VisionConfig) else CONV_MODEL),
        "projection_dim": vision.projection,
        "logit_scale_init_value": 2.6592,
        "text_config": diffusers_configs.text_to_json(text),
        "vision_config": diffusers_configs.vision_to_json(vision),
    }
    with atomic_folder(path) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / PREPROCESSOR, _preprocessor_to_json(pair))
        if pair.phrases:
            write_json(folder / PHRASES, pair.phrases)
        pair.tokenizer.save(folder)
        save_weights(export(pair.clip, _table(vision), "transformers"), folder / f"{STEM}.safetensors", dtype=dtype)


def copy_pair(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Copies a pair's folder into a new one, its weights converted to `dtype`. Raises WeightsError where it is gone."""
    if not source.is_dir():
        raise WeightsError(f"{source}: the contrastive pair that goes with the model is gone; load the model again")
    target.mkdir()
    for path in sorted(source.iterdir()):
        if dtype is not None and path.suffix == ".safetensors":
            weights = open_weights(path)
            save_weights(weights.tensors, target / path.name, weights.metadata, dtype)
        elif path.is_file() and path.suffix in MODEL_SUFFIXES:
            shutil.copyfile(path, target / path.name)


def _table(vision: VisionConfig | ConvConfig) -> Table:
    return PAIR if isinstance(vision, VisionConfig) else CONV_PAIR


def _towers_from_json(json: Json) -> tuple[TextConfig, VisionConfig | ConvConfig]:
    width = json["projection_dim"]
    text = diffusers_configs.text_from_json(TEXT_DEFAULTS | json["text_config"], projection=width)
    return text, diffusers_configs.vision_from_json(json["vision_config"], projection=width)


def _read_preprocessor(folder: Path, size: int) -> tuple[Rgb, Rgb, Resampling]:
    """Newer versions of transformers write one file for pictures and texts."""
    if (folder / PREPROCESSOR).is_file():
        return read_config(folder / PREPROCESSOR, lambda json: _preprocessor_from_json(json, size))
    if (folder / PROCESSOR).is_file():
        return read_config(folder / PROCESSOR, lambda json: _preprocessor_from_json(json["image_processor"], size))
    return _preprocessor_from_json({}, size)


def _preprocessor_from_json(json: Json, size: int) -> tuple[Rgb, Rgb, Resampling]:
    """Mean, standard deviation and filter of a CLIPImageProcessor, whose pictures must have the tower's size."""
    check_fixed("picture", json, PREPROCESSOR_FIXED)
    for key, names in (("size", {"shortest_edge"}), ("crop_size", {"height", "width"})):
        got = json.get(key, size)
        if got not in (size, dict.fromkeys(names, size)):
            raise WeightsError(
                f"picture config: {key} is {shortened(got)}, which is not supported (expected {size}, the tower's)"
            )
    mean, std = (
        tuple(map(float, json.get(key, default)))
        for key, default in (("image_mean", OPENAI_MEAN), ("image_std", OPENAI_STD))
    )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise WeightsError(f"picture config: image_mean is {mean}, image_std {std}; expected three colours, std over 0")
    return mean, std, Resampling(json.get("resample", Resampling.BICUBIC))


def _preprocessor_to_json(pair: ContrastivePair) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "size": {"shortest_edge": pair.size},
        "crop_size": {"height": pair.size, "width": pair.size},
        "image_mean": list(pair.mean),
        "image_std": list(pair.std),
        "resample": int(pair.resample),
        "do_convert_rgb": True,
        **PREPROCESSOR_FIXED,
    }


def _tokenizer(folder: Path, text: TextConfig) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    got, expected = (len(tokenizer), tokenizer.length, tokenizer.eos), (text.vocabulary, text.length, text.eos)
    if got[0] > expected[0] or got[1] > expected[1] or got[2] != expected[2]:
        raise WeightsError(
            f"{folder}: its tokenizer (entries, length, end of text) is {got}, and its text tower {expected}; "
            "they are not of one model, fetch it again"
        )
    return tokenizer


def _phrases_from_json(json: Sequence[Any]) -> Phrases:
    phrases = tuple(tuple(row) for row in json if isinstance(row, list))
    if len(phrases) != len(json) or not all(phrases) or not all(isinstance(x, str) for row in phrases for x in row):
        raise ValueError("expected a list of lists of texts")
    return phrases
