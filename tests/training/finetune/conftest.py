"""Fine-tuning methods on a tiny model and two pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from gradina.pipeline.model import StableDiffusion
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.latents import Crop, LatentDataset, encode_pictures
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.finetune.methods import (
    Method,
    dreambooth,
    finetuning,
    imagic_embedding,
    imagic_finetune,
    textual_inversion,
)
from gradina.training.finetune.run import finetune

CONFIG = FinetuneConfig(steps=6, batch=2, lr=1e-2, warmup=0, rank=2, seed=3)

METHODS: dict[str, Callable[[StableDiffusion, LatentDataset, FinetuneConfig], Method]] = {
    "lora": finetuning,
    "lora, text": lambda model, data, config: finetuning(model, data, replace(config, text_rate=0.5)),
    "full": lambda model, data, config: finetuning(model, data, replace(config, rank=None, lr=1e-3)),
    "full, text": lambda model, data, config: finetuning(
        model, data, replace(config, rank=None, lr=1e-3, text_rate=0.5)
    ),
    "dreambooth": lambda model, data, config: dreambooth(model, data, data, config),
    "inversion": lambda model, data, config: textual_inversion(
        model, data, "<boat>", "boat", replace(config, vectors=2)
    ),
    "embedding": lambda model, data, config: imagic_embedding(model, data, "a green boat", config),
    "imagic": lambda model, data, config: imagic_finetune(
        model, data, model.encode_text(["a green boat"]).states[0], config
    ),
}


def owned(model: StableDiffusion, pictures: Path) -> LatentDataset:
    """The latents of the pictures."""
    return encode_pictures(model, read_image_folder(pictures), Crop(), 64 * 64)


def run(method: Method, config: FinetuneConfig, folder: Path, stop: int | None = None) -> Path | None:
    """A run to its end, or closed after some steps."""
    running = finetune(method, config, folder, "mark", ["a boat"], sample_every=100)
    for _ in range(stop or 10**6):
        try:
            next(running)
        except StopIteration as end:
            return Path(end.value)
    running.close()
    return None


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two captioned pictures."""
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "boats"
    folder.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"a {colour} boat.png")
    return folder


@pytest.fixture
def model(tiny_model: Callable[..., StableDiffusion]) -> StableDiffusion:
    """A tiny Stable Diffusion 1 with random weights."""
    return tiny_model("sd1")


@pytest.fixture
def data(model: StableDiffusion, pictures: Path) -> LatentDataset:
    """The pictures as latents."""
    return owned(model, pictures)


@pytest.fixture
def config() -> FinetuneConfig:
    """A few quick steps."""
    return CONFIG


@pytest.fixture(params=METHODS)
def prepare(
    request: pytest.FixtureRequest, model: StableDiffusion, data: LatentDataset
) -> Callable[[FinetuneConfig], Method]:
    """Each method in turn, on the pictures."""
    return lambda config: METHODS[request.param](model, data, config)


@pytest.fixture
def run_method() -> Callable[..., Path | None]:
    """`run_method(method, config, folder, stop=None)`: a run to its end, or closed after some steps."""
    return run
