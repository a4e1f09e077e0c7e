"""JSON files of settings: whatever they hold, a config that a network can be built of, or one line that names them."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from gradina.errors import RequestError, WeightsError
from gradina.models.clip import ConvConfig, TextConfig, VisionConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig

Json = Mapping[str, Any]
T = TypeVar("T")
Config = TypeVar("Config", UNetConfig, VAEConfig, TextConfig, VisionConfig, ConvConfig)

LEVELS = 16  # resolutions of a network
# Our field, what config.json calls it, and the most that it can be; the least is 1.
MOST: dict[str, tuple[str, int]] = {
    "channels":        ("in_channels",                  2**12),
    "out_channels":    ("out_channels",                 2**12),
    "latent_channels": ("latent_channels",              2**12),
    "widths":          ("block_out_channels",           2**16),
    "heads":           ("attention heads",              2**12),
    "blocks":          ("layers_per_block",             64),
    "depth":           ("transformer_layers_per_block", 64),
    "context":         ("cross_attention_dim",          2**16),
    "groups":          ("norm_num_groups",              2**12),
    "size":            ("sample_size",                  2**12),
    "vocabulary":      ("vocab_size",                   2**24),
    "length":          ("max_position_embeddings",      2**20),
    "width":           ("hidden_size",                  2**16),
    "inner":           ("intermediate_size",            2**20),
    "layers":          ("num_hidden_layers",            256),
    "eos":             ("eos_token_id",                 2**24),
    "patch":           ("patch_size",                   2**12),
    "projection":      ("projection_dim",               2**16),
}  # fmt: skip
OF_IMAGES = {"size": "image_size", "channels": "num_channels", "widths": "widths"}  # as towers for images call them


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; raises WeightsError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # as some editors write it
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file; expected a model folder in the diffusers layout") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(content).__name__}; fetch it again")
    return content


def read_settings(path: Path, reader: Callable[[Any], T]) -> T:
    """What `reader` makes of a file of JSON; its errors name the file."""
    content = read_json(path)
    with naming(path):
        return reader(content)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What settings of any form can lead to, as a WeightsError that names the file."""
    try:
        yield
    except (WeightsError, RequestError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, RecursionError) as error:
        why = " ".join(repr(error).split())[:200]
        raise WeightsError(f"{path}: a setting is missing or malformed ({why}); fetch or convert it again") from error


def checked(config: Config) -> Config:
    """The config, if a network can be built of it; raises WeightsError, naming what cannot be."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "int | None" and value is None:
            continue
        if field.name in MOST:
            name, most = MOST[field.name]
            name = OF_IMAGES.get(field.name, name) if isinstance(config, VisionConfig | ConvConfig) else name
            each = value if isinstance(value, tuple) else (value,)
            if not 1 <= len(each) <= LEVELS:
                raise WeightsError(f"{name} has {len(each)} entries, expected 1 to {LEVELS}")
            for one in each:
                whole(name, one, 1, most)
        elif field.type == "bool" and not isinstance(value, bool):
            raise WeightsError(f"{field.name} is {shown(value)}, expected true or false")
    if isinstance(config, VAEConfig):
        number("scaling_factor", config.scale, 0, 1e6)
    _check_shares(config)
    return config


def check_fixed(network: str, json: Json, fixed: Json) -> None:
    """Raises WeightsError for a setting that our networks have built in and that a file says otherwise."""
    for key, expected in fixed.items():
        got = json.get(key, expected)
        if got != expected:
            raise WeightsError(
                f"{network} config: {key} is {shown(got)}, which is not built here (expected {expected!r})"
            )


def whole(name: str, value: Any, least: int, most: int) -> None:
    """Raises WeightsError unless that is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise WeightsError(f"{name} is {shown(value)}, expected a whole number of {least} to {most}")


def number(name: str, value: Any, above: float, most: float) -> None:
    """Raises WeightsError unless that is a number above `above`, and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
        raise WeightsError(f"{name} is {shown(value)}, expected a number above {above:g}, at most {most:g}")


def shown(value: object) -> str:
    """A value as a message shows it: not in full if it is long."""
    return reprlib.repr(value)


def _check_shares(config: UNetConfig | VAEConfig | TextConfig | VisionConfig | ConvConfig) -> None:
    """Heads and groups share a width evenly."""
    pairs: list[tuple[str, int, int]] = []
    if isinstance(config, TextConfig | VisionConfig):
        pairs += [("attention heads", config.width, config.heads)]
    elif isinstance(config, UNetConfig | VAEConfig):
        pairs += [("norm_num_groups", width, config.groups) for width in config.widths]
    if isinstance(config, UNetConfig):
        if not len(config.widths) == len(config.attention) == len(config.heads):
            raise WeightsError(
                f"block_out_channels has {len(config.widths)} entries, down_block_types {len(config.attention)} and "
                f"attention_head_dim {len(config.heads)}, expected as many of each"
            )
        pairs += [("attention_head_dim", w, h) for w, h in zip(config.widths, config.heads, strict=True)]
    for name, width, parts in pairs:
        if math.gcd(width, parts) != parts:
            raise WeightsError(f"{name} is {parts}, which does not divide the width {width}")
