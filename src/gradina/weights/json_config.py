"""JSON configs: whatever they hold, a config that a network can be built of, or an error of one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeVar

from gradina.errors import RequestError, WeightsError
from gradina.files import read_json
from gradina.models.clip import TextConfig
from gradina.models.clip_vision import ConvConfig, VisionConfig
from gradina.models.unet import UNetConfig
from gradina.models.vae import VAEConfig

Json = Mapping[str, Any]
T = TypeVar("T")
Config = TypeVar("Config", UNetConfig, VAEConfig, TextConfig, VisionConfig, ConvConfig)

MAX_LEVELS = 16  # resolutions of a network
# Field of our config, its key in config.json, and its maximum; the minimum is 1.
LIMITS: dict[str, tuple[str, int]] = {
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
VISION_KEYS = {"size": "image_size", "channels": "num_channels", "widths": "widths"}  # other keys of image towers


def read_config(path: Path, reader: Callable[[Any], T], kind: type = dict) -> T:
    """What `reader` makes of a JSON file (an object, or a list); its errors name the file."""
    content = read_json(path, kind)
    with config_errors(path):
        return reader(content)


@contextmanager
def config_errors(path: Path) -> Iterator[None]:
    """Turns whatever a malformed config leads to into a WeightsError that names the file."""
    try:
        yield
    except (WeightsError, RequestError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, RecursionError) as error:
        why = " ".join(repr(error).split())[:200]
        raise WeightsError(f"{path}: a setting is missing or malformed ({why}); fetch or convert it again") from error


def validated(config: Config) -> Config:
    """The config, if a network can be built of it; raises WeightsError with the first field that is out of range."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "int | None" and value is None:
            continue
        if field.name in LIMITS:
            key, most = LIMITS[field.name]
            key = VISION_KEYS.get(field.name, key) if isinstance(config, VisionConfig | ConvConfig) else key
            entries = value if isinstance(value, tuple) else (value,)
            if not 1 <= len(entries) <= MAX_LEVELS:
                raise WeightsError(f"{key} has {len(entries)} entries, expected 1 to {MAX_LEVELS}")
            for entry in entries:
                check_int(key, entry, 1, most)
        elif field.type == "bool" and not isinstance(value, bool):
            raise WeightsError(f"{field.name} is {shortened(value)}, expected true or false")
    if isinstance(config, VAEConfig):
        check_number("scaling_factor", config.scale, 0, 1e6)
    _check_divisible(config)
    return config


def check_fixed(network: str, json: Json, fixed: Json) -> None:
    """Raises WeightsError for a setting that our network has built in and that the file gives another value."""
    for key, expected in fixed.items():
        got = json.get(key, expected)
        if got != expected:
            raise WeightsError(
                f"{network} config: {key} is {shortened(got)}, which is not supported (expected {expected!r})"
            )


def check_int(name: str, value: Any, least: int, most: int) -> None:
    """Raises WeightsError unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise WeightsError(f"{name} is {shortened(value)}, expected a whole number from {least} to {most}")


def check_number(name: str, value: Any, above: float, most: float) -> None:
    """Raises WeightsError unless `value` is a number above `above` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
        raise WeightsError(f"{name} is {shortened(value)}, expected a number above {above:g}, at most {most:g}")


def _check_divisible(config: UNetConfig | VAEConfig | TextConfig | VisionConfig | ConvConfig) -> None:
    """Heads and groups divide their width."""
    divisors: list[tuple[str, int, int]] = []
    if isinstance(config, TextConfig | VisionConfig):
        divisors += [("attention heads", config.width, config.heads)]
    elif isinstance(config, UNetConfig | VAEConfig):
        divisors += [("norm_num_groups", width, config.groups) for width in config.widths]
    if isinstance(config, UNetConfig):
        if not len(config.widths) == len(config.attention) == len(config.heads):
            raise WeightsError(
                f"block_out_channels has {len(config.widths)} entries, down_block_types {len(config.attention)} and "
                f"attention_head_dim {len(config.heads)}, expected as many of each"
            )
        divisors += [("attention_head_dim", w, h) for w, h in zip(config.widths, config.heads, strict=True)]
    for name, width, n in divisors:
        if math.gcd(width, n) != n:
            raise WeightsError(f"{name} is {n}, which does not divide the width {width}")
