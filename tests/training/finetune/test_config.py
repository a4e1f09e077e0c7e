"""The configuration of a method: published settings, and what is given in their place."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_type_hints

import pytest

from gradina.adapters.lora import ATTENTION
from gradina.errors import RecipeError
from gradina.training.finetune.config import METHODS, FinetuneConfig, config_for
from gradina.training.settings import NoiseLaw, Option, Settings


def test_published_settings_yield_to_what_is_given() -> None:
    config = config_for("finetune")
    assert (config.steps, config.lr, config.accumulate, config.ema, config.rank) == (1000, 1e-4, 4, 0.999, 8)
    assert (config.batch, config.warmup, config.decay) == (1, 0, 0.0)
    full = config_for("finetune", rank=None, steps=None, ema=0.0, shift=2.0)
    assert (full.steps, full.lr, full.rank, full.ema, full.shift) == (1000, 1e-5, None, 0.0, 2.0)


def test_the_usual_targets_are_the_attention_layers() -> None:
    """Written out, since the configuration is read without torch."""
    assert FinetuneConfig.targets == ATTENTION


def test_renamed_methods_keep_their_random_keys() -> None:
    """What a run draws depends on them."""
    assert [row.key for row in METHODS.values()] == ["finetune", "dreambooth", "inversion", "nearer", "onto"]


def test_every_setting_of_a_noise_law_is_an_option() -> None:
    hints = get_type_hints(FinetuneConfig, include_extras=True)
    options = {
        name for name, hint in hints.items() if any(isinstance(m, Option) for m in getattr(hint, "__metadata__", ()))
    }
    assert {f.name for f in fields(NoiseLaw)} <= options
    assert {"steps", "batch", "lr", "warmup", "accumulate", "ema"} == options & {f.name for f in fields(Settings)}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rank", 0, "a number above 0"),
        ("vectors", 0, "a number above 0"),
        ("caption_dropout", 1.5, "0 to 1"),
        ("text_rate", -0.1, "0, or a number above it"),
        ("prior", float("inf"), "0, or a number above it"),
        ("lr", float("nan"), "a number above 0"),
    ],
)
def test_values_out_of_range_are_refused(config: FinetuneConfig, field: str, value: float, expected: str) -> None:
    with pytest.raises(RecipeError, match=f"^{field}: got {value}, expected {expected}$"):
        replace(config, **{field: value})  # type: ignore[arg-type]
