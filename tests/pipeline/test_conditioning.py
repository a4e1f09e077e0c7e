"""Conditioning: prompts of several chunks, learnt words and edits as batches of text states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gradina import Request, steps
from gradina.errors import RequestError
from gradina.pipeline.model import StableDiffusion

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)


def test_prompts_of_different_chunks_cannot_share_a_batch(tiny_model: Tiny) -> None:
    with pytest.raises(RequestError, match="over 75 tokens"):
        steps(tiny_model(), replace(ASKED, prompt=("seven " * 80, "seven")))
