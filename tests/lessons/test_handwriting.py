"""Digits for the lessons, and the network that reads them."""

from __future__ import annotations

import pytest
import torch
from handwriting import digits, drawn, recogniser, rows_of, share_read
from torch import Tensor

from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import sd_schedule


def test_digits_are_pictures_and_their_kinds() -> None:
    pictures, kinds = digits("held out", 20)
    assert pictures.shape == (20, 1, 28, 28)
    assert (pictures.min(), pictures.max()) == (0, 1)
    assert kinds[:5].tolist() == [7, 2, 1, 0, 4]
    for count in (0, 10_001):
        with pytest.raises(ValueError, match=f"count: got {count}, expected 1 to 10000"):
            digits("held out", count)


def test_it_learns_to_read() -> None:
    pictures, kinds = digits("train", 2000)
    network = recogniser(pictures, kinds, 60)
    unseen, unseen_kinds = digits("held out", 500)
    assert share_read(network, unseen, unseen_kinds) > 0.8
    assert share_read(network, unseen, (unseen_kinds + 1) % 10) < 0.1
    assert [tuple(found.shape[1:]) for found in network.maps(unseen[:2])] == [(32, 28, 28), (64, 14, 14), (64, 7, 7)]
    with pytest.raises(ValueError, match=r"shape \(2, 28, 28\), expected \(n, 1, 28, 28\)"):
        network(torch.zeros(2, 28, 28))


def test_rows_say_which_digit() -> None:
    rows = rows_of(torch.tensor([3, 0]))
    assert rows.shape == (2, 1, 10)
    assert rows.argmax(2)[:, 0].tolist() == [3, 0]
    assert rows.sum() == 2
    assert rows_of(torch.tensor([3, 0]), torch.tensor([True, False]).view(2, 1, 1)).sum((1, 2)).tolist() == [1, 0]
    assert not rows_of(torch.tensor([3]), False).any()


def test_drawn_is_what_the_network_says() -> None:
    """One that knows each digit as an even grey: guided by 1 it is drawn, by 0 that of no digit, by 2 as far beyond."""
    schedule = sd_schedule()

    def says(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return ((cond * torch.arange(10) / 10).sum(2)[:, :, None, None]).expand_as(x)

    denoiser = Denoiser(on_states(says), schedule, PREDICTIONS["x0"])
    wanted = torch.tensor([2, 4])
    for scale in (0.0, 1.0, 2.0):
        pictures = drawn(denoiser, wanted, 3, (1, 4, 4), scale)
        torch.testing.assert_close(pictures, (scale * wanted / 10).view(2, 1, 1, 1).expand(2, 1, 4, 4))
