"""Handwritten digits, their classifier and their sampler."""

from __future__ import annotations

import pytest
import torch
from handwriting import accuracy, digits, one_hot, sample, train_classifier
from torch import Tensor

from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import sd_schedule


def test_digits_have_pictures_and_labels() -> None:
    pictures, labels = digits("held out", 20)
    assert pictures.shape == (20, 1, 28, 28)
    assert (pictures.min(), pictures.max()) == (0, 1)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    for count in (0, 10_001):
        with pytest.raises(ValueError, match=f"count: got {count}, expected 1 to 10000"):
            digits("held out", count)


def test_classifier_learns() -> None:
    pictures, labels = digits("train", 2000)
    network = train_classifier(pictures, labels, 60)
    test, test_labels = digits("held out", 500)
    assert accuracy(network, test, test_labels) > 0.8
    assert accuracy(network, test, (test_labels + 1) % 10) < 0.1
    assert [tuple(found.shape[1:]) for found in network.maps(test[:2])] == [(32, 28, 28), (64, 14, 14), (64, 7, 7)]
    with pytest.raises(ValueError, match=r"shape \(2, 28, 28\), expected \(n, 1, 28, 28\)"):
        network(torch.zeros(2, 28, 28))


def test_one_hot_rows() -> None:
    rows = one_hot(torch.tensor([3, 0]))
    assert rows.shape == (2, 1, 10)
    assert rows.argmax(2)[:, 0].tolist() == [3, 0]
    assert rows.sum() == 2
    assert one_hot(torch.tensor([3, 0]), torch.tensor([True, False]).view(2, 1, 1)).sum((1, 2)).tolist() == [1, 0]
    assert not one_hot(torch.tensor([3]), False).any()


def test_sample_follows_the_guided_prediction() -> None:
    """A network that predicts a constant grey per digit: scale 0 gives the unconditional one, 2 extrapolates."""
    schedule = sd_schedule()

    def predict(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return ((cond * torch.arange(10) / 10).sum(2)[:, :, None, None]).expand_as(x)

    denoiser = Denoiser(on_states(predict), schedule, PREDICTIONS["x0"])
    labels = torch.tensor([2, 4])
    for scale in (0.0, 1.0, 2.0):
        pictures = sample(denoiser, labels, 3, (1, 4, 4), scale)
        torch.testing.assert_close(pictures, (scale * labels / 10).view(2, 1, 1, 1).expand(2, 1, 4, 4))
