"""Digits for the lessons, and the network that reads them."""

from __future__ import annotations

import pytest
import torch
from handwriting import digits, recogniser, share_read


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
