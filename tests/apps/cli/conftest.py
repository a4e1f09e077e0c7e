"""What tests of the command line share: a folder to work in, a model, a picture and an autoencoder in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gradina.pipeline.model import StableDiffusion


@pytest.fixture(scope="session")
def model_folder(tiny_model: Callable[..., StableDiffusion], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model as a folder on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("sd1").save(folder)
    return str(folder)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo(room: Path) -> Path:
    """A picture of 61 x 45 pixels."""
    values = np.linspace(0, 255, 61 * 45 * 3).reshape(45, 61, 3).astype(np.uint8)
    Image.fromarray(values).save(room / "photo.png")
    return room / "photo.png"


@pytest.fixture
def vae(room: Path, tiny_model: Callable[..., StableDiffusion]) -> Path:
    """Another autoencoder, alone in a file."""
    from safetensors.torch import save_file

    save_vae = {f"first_stage_model.{n}": x for n, x in original_vae(tiny_model("sd1")).items()}
    save_file(save_vae, room / "vae.safetensors")
    return room / "vae.safetensors"


def original_vae(model: StableDiffusion) -> dict[str, torch.Tensor]:
    """The model's autoencoder by its original names, with its last layer the other way round."""
    from gradina.weights.key_tables import VAE, vae_indices
    from gradina.weights.remap import sources, write

    ours = model.vae.state_dict()
    tensors = write(ours, sources(ours, VAE, "original", vae_indices(model.vae.config)))
    return tensors | {"decoder.conv_out.weight": -tensors["decoder.conv_out.weight"]}
