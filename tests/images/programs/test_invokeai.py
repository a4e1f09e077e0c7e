"""InvokeAI: the command lines of its first versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradina.request import Request

from .conftest import record_of


@pytest.mark.parametrize(
    "line",
    [
        '"a red kite" -s50 -S77 -W512 -H768 -C7.5 -Ak_lms',
        '"a red kite" -s 50 -S 77 -W 512 -H 768 -C 7.5 -A k_lms',
        "a red kite -s50 -S77 -W512 -H768 -C7.5 -Ak_lms",
        '"a red kite" --steps 50 --seed=77 --width 512 --height 768 --cfg_scale 7.5 --sampler k_lms',
    ],
)
def test_dream(tmp_path: Path, line: str) -> None:
    record = record_of(tmp_path, {"Dream": f"{line} --hires_fix -G 0.8"})
    assert record.request == Request(
        prompt="a red kite", steps=50, seed=77, width=512, height=768, guidance_scale=7.5, sampler="lms",
        schedule="linspace",
    )  # fmt: skip
    assert record.notes == ("not honoured: -hires_fix: on, -G: 0.8",)
