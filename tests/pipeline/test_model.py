"""The model: pixels, latents and states in and out, saved and loaded, in half precision, with low memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradina import Request, generate, load, steps
from gradina.errors import RequestError
from gradina.images.tensor import to_image, to_pixels
from gradina.pipeline.model import StableDiffusion

from .conftest import grey

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def test_to_image_inverts_to_pixels(init: Image.Image) -> None:
    pixels = to_pixels(init)
    assert pixels.shape == (3, 64, 64)
    assert (pixels.min() >= -1) & (pixels.max() <= 1)
    assert grey(to_image(pixels), init) == 0
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    assert grey(to_image(to_pixels(every)), every) == 0
    assert levels(to_image(torch.tensor([-9.0, 0, 9])[:, None, None]))[0, 0].tolist() == [0, 128, 255]


def test_encode_gives_the_mean_or_a_sample(tiny_model: Tiny, init: Image.Image) -> None:
    model, pixels = tiny_model(), to_pixels(init)[None]
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    believed, scale = model.vae.posterior(pixels), model.vae.config.scale
    torch.testing.assert_close(model.encode(pixels), believed.mean * scale)
    torch.testing.assert_close(model.encode(pixels, noise), believed.sample(noise) * scale)


def test_encode_text_refuses_a_token_that_the_tower_does_not_have(tiny_model: Tiny) -> None:
    model = tiny_model()
    wordy = replace(model, tokenizer=model.tokenizer.with_placeholder("<dog>"))
    assert torch.equal(wordy.encode_text(["a red boat"]).states, model.encode_text(["a red boat"]).states)
    with pytest.raises(
        RequestError, match="prompt: '<dog>' is a token that the text tower does not know; leave it out"
    ):
        generate(wordy, replace(ASKED, prompt="a <dog>"))


def test_reuse_needs_an_engine_that_runs_the_unet_in_parts(tiny_model: Tiny) -> None:
    model = replace(tiny_model(), engine="compile")
    with pytest.raises(RequestError, match="reuse: got 2, but compile computes the U-Net as a whole; try engine eager"):
        generate(model, replace(ASKED, reuse=2))


def test_offload_loads_one_network_at_a_time(tiny_model: Tiny, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "tiny")
    model = load(tmp_path / "tiny", dtype="bf16", low_memory=True)
    for step in steps(model, replace(ASKED, steps=2)):
        assert model.offload is not None
        assert model.offload.offloaded is model.unet
        denoised = step.denoised
    model.decode(denoised)
    assert model.offload is not None
    assert model.offload.offloaded is model.vae
    assert model.unet.conv_in.weight.dtype == torch.float32, "as in the file"
    with pytest.raises(RequestError, match="low_memory: is for the CPU and engine eager, not for cpu and compile"):
        load(tmp_path / "tiny", engine="compile", low_memory=True)
