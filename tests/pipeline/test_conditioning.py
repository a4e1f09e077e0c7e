"""Conditioning: prompts of several chunks, textual inversions and edits as batches of text states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gradina import Request, steps
from gradina.diffusion.conditioning import Cond
from gradina.errors import RequestError
from gradina.pipeline.conditioning import adapted, edited, encode_prompts
from gradina.pipeline.model import StableDiffusion

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=4, width=64, height=64)


def test_prompts_of_different_chunks_cannot_share_a_batch(tiny_model: Tiny) -> None:
    with pytest.raises(RequestError, match="over 75 tokens"):
        steps(tiny_model(), replace(ASKED, prompt=("seven " * 80, "seven")))


def test_cond_is_a_batch_of_the_prompts_and_uncond_repeats_the_negative_prompt(tiny_model: Tiny) -> None:
    model = tiny_model()
    prompts, negative = [model.tokenizer.ids(text) for text in ("a red boat", "seven " * 80)], "blue " * 100
    cond, uncond = encode_prompts(model, prompts, model.tokenizer.ids(negative))
    expected = model.encode_text(["a red boat", "seven " * 80, negative]).states
    assert len(cond) == len(uncond) == 2
    assert torch.equal(cond.states, expected[:2])
    assert torch.equal(uncond.states, expected[2:].expand(2, -1, -1))
    assert expected.shape == (3, model.tokenizer.chunk_count(negative) * model.tokenizer.length, 32)


def test_an_edit_lies_between_its_states_and_those_of_the_prompt(tiny_model: Tiny) -> None:
    fitted, states = torch.full((3, 2), 1.0), torch.full((2, 3, 2), 5.0)
    cond, pooled = Cond(states, states[:, 0]), states[:, 0]
    for share, value in ((0.0, 1.0), (0.25, 2.0), (1.0, 5.0), (1.5, 7.0)):
        between = edited(cond, fitted, share)
        assert torch.equal(between.states, torch.full((2, 3, 2), value))
        assert between.pooled is not None
        assert torch.equal(between.pooled, pooled)
    with pytest.raises(RequestError, match="edit: it was made for a prompt of 2 tokens, this one takes 3"):
        edited(cond, fitted[:2], 0.5)


def test_without_files_a_model_is_adapted_to_nothing(tiny_model: Tiny) -> None:
    assert adapted(tiny_model(), ASKED) is tiny_model()
