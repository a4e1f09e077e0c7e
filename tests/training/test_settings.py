"""Settings: the learning rate of each step, and ranges."""

from __future__ import annotations

import math

import pytest

from gradina.errors import RecipeError
from gradina.training.settings import NoiseLaw, Settings


def test_learning_rate_warms_up_and_decays() -> None:
    settings = Settings(steps=100, batch=1, lr=1.0, warmup=10, decay=0.5)
    rates = [settings.lr_at(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.98)))
    assert [Settings(steps=9, batch=1, lr=1.0, warmup=0, decay=0).lr_at(i) for i in (0, 8)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shift", 0.0, "shift: got 0.0, expected more than 0"),
        ("min_snr", 0.0, "min_snr: got 0.0, expected a number above 0"),
        ("noise_offset", -0.1, "noise_offset: got -0.1, expected 0, or a number above it"),
        ("noise_offset", math.nan, "noise_offset: got nan, expected 0, or a number above it"),
        ("interval", (2.0, 1.0), r"interval: got \(2.0, 1.0\), expected the lowest and the highest sigma"),
        ("interval", (1.0,), r"interval: got \(1.0,\), expected the lowest and the highest sigma"),
    ],
)
def test_a_noise_law_out_of_range_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}$"):
        NoiseLaw(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("lr", math.inf), ("decay", 1.1), ("betas", (0.9, 1.0))])
def test_settings_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"^{field}: got "):
        Settings(**{"steps": 1, "batch": 1, "lr": 1.0, field: value})  # type: ignore[arg-type]
