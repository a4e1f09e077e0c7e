"""The stand-in for the U-Net: each place says its part of the latents, and words learn from it."""

from __future__ import annotations

import pytest
import torch

from gradina.models.clip import TextConfig, TextTower
from gradina.training.losses import imagining
from gradina.training.pretrain.latent_predictor import Reader


def small(shape: tuple[int, int, int]) -> Reader:
    """Of sixteen numbers for each place, over a vocabulary of twenty."""
    text = TextTower(TextConfig(vocabulary=20, length=8, width=16, inner=32, layers=1, heads=2, eos=19))
    return Reader(text, shape, width=16, layers=1, heads=2)


@pytest.mark.parametrize(("shape", "side"), [((4, 16, 16), 4), ((4, 6, 9), 3), ((2, 5, 5), 1)])
def test_a_reader_says_latents_from_what_comes_before_the_end(shape: tuple[int, int, int], side: int) -> None:
    torch.manual_seed(0)
    reader = small(shape)
    assert reader.side == side
    short = torch.tensor([[1, 5, 19, 19], [1, 7, 8, 19]])
    said = reader(short)
    assert said.shape == (2, *shape)
    padded = torch.cat([short, torch.full((2, 4), 19)], dim=1)
    torch.testing.assert_close(reader(padded), said)
    assert not torch.equal(said[0], said[1])
    torch.testing.assert_close(imagining(reader, short, said.detach() + 2), torch.full((2,), 4.0))


def test_each_place_of_a_reader_says_its_part_of_the_latents() -> None:
    reader, ids = small((2, 8, 8)), torch.tensor([[1, 5, 19]])
    with torch.no_grad():
        for block in reader.blocks:
            block.self_attn.out.weight.zero_()  # places do not hear of each other
        before = reader(ids)
        reader.places[6] += torch.randn(16)  # the second row's third
        moved = (reader(ids) - before).abs().sum((0, 1)) > 0
    assert moved[2:4, 4:6].all()
    assert moved.sum() == 4


def test_a_reader_learns_what_words_mean() -> None:
    torch.manual_seed(0)
    reader = small((2, 4, 4))
    ids, latents = torch.tensor([[1, k, 19] for k in range(2, 10)]), torch.randn(8, 2, 4, 4)
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = imagining(reader, ids, latents).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
