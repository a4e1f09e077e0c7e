"""The digit function of lesson 3, its two gradients, and its endpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from digit import Digit, ascent, gradient, mix_with_noise, numerical_gradient, probability, train_digit
from service import served, service
from torch import Tensor

PICTURE = torch.rand(28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def digit() -> Digit:
    torch.manual_seed(0)
    return Digit().double().requires_grad_(False)


def test_numerical_and_analytic_gradients_agree(digit: Digit) -> None:
    numerical, evaluations = numerical_gradient(digit, PICTURE)
    analytic = gradient(digit, PICTURE[None])[0]
    assert evaluations == 785
    assert (numerical - analytic).abs().max() < 1e-3 * analytic.abs().max()


def test_ascent_raises_the_probability(digit: Digit) -> None:
    start = PICTURE[None]
    above = ascent(digit, start, 5)
    assert probability(digit, above) > probability(digit, start)
    assert 0 <= above.min() <= above.max() <= 1
    assert (ascent(digit, start, 1, max_step=0.01) - start).abs().max() <= 0.01 + 1e-12


def test_training_separates_digits_from_noise_reproducibly() -> None:
    """On a data set of one stroke; the same seed gives the same weights."""
    strokes = torch.zeros(50, 28, 28)
    strokes[:, 4:24, 13:16] = 1
    digit = train_digit(strokes, steps=80, adversarial=False)
    assert probability(digit, strokes[:1]) > 0.7
    assert probability(digit, torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(5))) < 0.3
    short, again = train_digit(strokes, steps=2), train_digit(strokes, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), again.parameters(), strict=True))
    key = torch.Generator().manual_seed(0)
    mixed, fractions = mix_with_noise(strokes, key)
    assert torch.equal(mixed[:, 10, 14] >= fractions, torch.ones(50, dtype=torch.bool))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(28, 28), r"shape \(28, 28\), expected \(n, 28, 28\)"),
        (torch.zeros(1, 32, 32), r"shape \(1, 32, 32\), expected"),
        (torch.zeros(0, 28, 28), r"shape \(0, 28, 28\), expected"),
        (torch.zeros(1, 28, 28, dtype=torch.uint8), "got dtype torch.uint8, expected floating point"),
        (torch.full((1, 28, 28), 1.5), "got values from 1.5 to 1.5, expected 0"),
        (torch.full((1, 28, 28), float("nan")), "got values from nan to nan, expected 0"),
    ],
)
def test_invalid_pictures_are_refused(pictures: Tensor, message: str, digit: Digit) -> None:
    for function in (probability, gradient):
        with pytest.raises(ValueError, match=message):
            function(digit, pictures)


# Over HTTP


@pytest.fixture(scope="module")
def address(digit: Digit) -> Iterator[str]:
    with served(service(digit)) as address:
        yield address


def post(address: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urlopen(Request(address, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def test_endpoints_return_probability_and_gradient(address: str, digit: Digit) -> None:
    body = {"picture": PICTURE.tolist()}
    answer = post(f"{address}/digit/probability", body)
    assert answer == {"probability": pytest.approx(probability(digit, PICTURE[None]).item(), rel=1e-12)}
    analytic, numerical = (
        post(f"{address}/digit/gradient", {**body, "finite_differences": finite}) for finite in (False, True)
    )
    assert (analytic["evaluations"], numerical["evaluations"]) == (1, 785)
    expected = gradient(digit, PICTURE[None])[0]
    torch.testing.assert_close(torch.tensor(analytic["gradient"], dtype=torch.float64), expected)
    torch.testing.assert_close(
        torch.tensor(numerical["gradient"], dtype=torch.float64), expected, rtol=1e-3, atol=1e-3 * expected.abs().max()
    )


@pytest.mark.parametrize("name", ["probability", "gradient"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"picture": [[0.5] * 28] * 27}, "picture: got pictures of shape (1, 27, 28), expected (n, 28, 28)"),
        ({"picture": [[0.5] * 28, [0.5]]}, "picture: got rows of 1 and 28 values, expected 28 rows of 28"),
        ({"picture": []}, "picture: got pictures of shape (1, 0), expected"),
        ({"picture": [[7.0] * 28] * 28}, "picture: got values from 7 to 7, expected 0 (black) to 1 (white)"),
        ({"picture": [["white"] * 28] * 28}, "picture.0.0: "),
        ({"picture": "7"}, "picture: "),
        ({}, "picture: "),
        (b"{", ""),
    ],
)
def test_invalid_bodies_get_a_one_line_error(name: str, body: Any, message: str, address: str) -> None:
    with pytest.raises(HTTPError) as refused:
        post(f"{address}/digit/{name}", body)
    assert 400 <= refused.value.code < 500
    error = json.load(refused.value)["error"]
    assert error.startswith(message)
    assert error
    assert "\n" not in error
