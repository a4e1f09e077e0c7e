"""A contrastive pair as transformers keeps it: a folder with one file of weights and one of settings."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from gradina.errors import WeightsError
from gradina.files import atomic_folder
from gradina.models.clip import CLIP
from gradina.weights import configs
from gradina.weights.remap import sources, write
from gradina.weights.store import build, open_weights, save_weights
from gradina.weights.tables import PAIR

# What transformers fills in where a CLIPTextConfig leaves it out.
TEXT_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # buffers of older versions


def read_pair(path: str | Path, dtype: torch.dtype | None = None) -> CLIP:
    """The CLIPModel of a transformers folder, such as that of openai/clip-vit-large-patch14; mapped.

    Raises WeightsError.
    """
    folder = Path(path)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        width = content["projection_dim"]
        text = configs.text_from(TEXT_DEFAULTS | content["text_config"], projection=width)
        vision = configs.vision_from(content["vision_config"], projection=width)
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder}: has no config.json of a CLIPModel ({error!r}); fetch it again") from error
    return build(
        lambda vision: CLIP(text, vision),
        vision,
        open_weights(folder / "model.safetensors"),
        partial(sources, table=PAIR, dialect="transformers"),
        dropped=POSITIONS,
        dialect="CLIPModel of transformers",
        dtype=dtype,
    )


def write_pair(pair: CLIP, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a folder that transformers' CLIPModel loads, whole or not at all. Raises DiskError."""
    text, vision = pair.text.config, pair.vision.config
    content = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.projection,
        "logit_scale_init_value": 2.6592,
        "text_config": configs.text_to(text),
        "vision_config": configs.vision_to(vision),
    }
    ours = {name: x if dtype is None else x.to(dtype) for name, x in pair.state_dict().items()}
    with atomic_folder(path) as folder:
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
        save_weights(write(ours, sources(ours, PAIR, "transformers")), folder / "model.safetensors")
