"""Loading: a saved model draws the same, in half precision nearly the same, and with low memory, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gradina import Request, generate, load, steps
from gradina.pipeline.model import StableDiffusion

from .conftest import grey

Tiny = Callable[..., StableDiffusion]
AsLoaded = Callable[[StableDiffusion], StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def test_a_saved_model_draws_the_same(tiny_model: Tiny, as_loaded: AsLoaded, tmp_path: Path) -> None:
    for form in ("sd1", "sd2", "inpainting"):
        model = tiny_model(form)
        model.save(tmp_path / form)
        loaded = load(tmp_path / form, device="cpu")
        (one,), (two,) = generate(as_loaded(model), ASKED), generate(loaded, ASKED)
        assert grey(one.image, two.image) == 0
        assert loaded.defaults == model.defaults
        assert loaded.hash
        assert two.model == loaded.about
        assert loaded.about["hash"] == loaded.hash


def test_half_precision_gives_a_close_picture(tiny_model: Tiny, tmp_path: Path, init: Image.Image) -> None:
    tiny_model("sd2").save(tmp_path / "model")
    model = load(tmp_path / "model", device="cpu", dtype="bf16")
    assert model.dtype == torch.bfloat16
    for asked in (ASKED, replace(ASKED, init_image=init)):
        (close,), (exact,) = generate(model, asked), generate(tiny_model("sd2"), asked)
        assert np.abs(levels(close.image) - levels(exact.image)).mean() < 4
    *_, step = steps(model, ASKED)
    assert step.x.dtype == step.denoised.dtype == torch.float32


def test_low_memory_draws_the_same(tiny_model: Tiny, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "tiny")
    for dtype in ("fp32", "bf16"):
        whole, lean = (load(tmp_path / "tiny", dtype=dtype, low_memory=low) for low in (False, True))
        assert lean.dtype == whole.dtype
        assert lean.about == whole.about
        init = Image.linear_gradient("L").convert("RGB").resize((64, 64))
        for asked in (ASKED, replace(ASKED, reuse=2, images=2), replace(ASKED, init_image=init)):
            pictures = zip(generate(whole, asked), generate(lean, asked), strict=True)
            assert max(grey(a.image, b.image) for a, b in pictures) <= 1
