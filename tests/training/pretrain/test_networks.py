"""Latent prediction: each query predicts a patch of the latents, and the text tower learns from it."""

from __future__ import annotations

import pytest
import torch

from gradina.models.clip import TextConfig, TextTower
from gradina.training.losses import latent_prediction
from gradina.training.pretrain.networks import LatentPredictor


def small(shape: tuple[int, int, int]) -> LatentPredictor:
    """Sixteen channels for each query, and a vocabulary of twenty tokens."""
    text = TextTower(TextConfig(vocabulary=20, length=8, width=16, inner=32, layers=1, heads=2, eos=19))
    return LatentPredictor(text, shape, width=16, layers=1, heads=2)


@pytest.mark.parametrize(("shape", "side"), [((4, 16, 16), 4), ((4, 6, 9), 3), ((2, 5, 5), 1)])
def test_latents_depend_on_the_tokens_before_the_end(shape: tuple[int, int, int], side: int) -> None:
    torch.manual_seed(0)
    predictor = small(shape)
    assert predictor.side == side
    short = torch.tensor([[1, 5, 19, 19], [1, 7, 8, 19]])
    latents = predictor(short)
    assert latents.shape == (2, *shape)
    padded = torch.cat([short, torch.full((2, 4), 19)], dim=1)
    torch.testing.assert_close(predictor(padded), latents)
    assert not torch.equal(latents[0], latents[1])
    torch.testing.assert_close(latent_prediction(predictor, short, latents.detach() + 2), torch.full((2,), 4.0))


def test_each_query_predicts_its_patch_of_the_latents() -> None:
    predictor, ids = small((2, 8, 8)), torch.tensor([[1, 5, 19]])
    with torch.no_grad():
        for block in predictor.blocks:
            block.self_attn.out.weight.zero_()  # queries do not attend to each other
        before = predictor(ids)
        predictor.places[6] += torch.randn(16)  # the second row's third
        moved = (predictor(ids) - before).abs().sum((0, 1)) > 0
    assert moved[2:4, 4:6].all()
    assert moved.sum() == 4


def test_latents_of_words_are_learned() -> None:
    torch.manual_seed(0)
    predictor = small((2, 4, 4))
    ids, latents = torch.tensor([[1, k, 19] for k in range(2, 10)]), torch.randn(8, 2, 4, 4)
    optimizer = torch.optim.AdamW(predictor.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = latent_prediction(predictor, ids, latents).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
