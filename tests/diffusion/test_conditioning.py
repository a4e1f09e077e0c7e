"""Cond: batches of all fields at once, in closed form."""

from __future__ import annotations

import pytest
import torch

from gradina.diffusion.conditioning import Cond


def cond(b: int, start: float = 0.0, full: bool = True) -> Cond:
    """States (b, 3, 2), pooled (b, 2) and extra (b, 1) that count up from `start`."""
    states = start + torch.arange(b * 6.0).view(b, 3, 2)
    return Cond(states, states[:, -1], states[:, 0, :1]) if full else Cond(states)


def fields(c: Cond) -> list[torch.Tensor]:
    assert c.pooled is not None
    assert c.extra is not None
    return [c.states, c.pooled, c.extra]


def test_cat_joins_every_field_in_order() -> None:
    both = Cond.cat([cond(2), cond(1, start=12)])
    assert len(both) == 3
    for got, expected in zip(fields(both), fields(cond(3)), strict=True):
        assert torch.equal(got, expected)


def test_a_slice_is_the_inverse_of_cat() -> None:
    parts = [cond(2), cond(1, start=50)]
    both = Cond.cat(parts)
    for part, rows in zip(parts, (slice(0, 2), slice(2, 3)), strict=True):
        for got, expected in zip(fields(both[rows]), fields(part), strict=True):
            assert torch.equal(got, expected)


def test_expand_repeats_one_condition_without_a_copy() -> None:
    one = cond(1)
    five = one.expand(5)
    assert len(five) == 5
    for got, expected in zip(fields(five), fields(one), strict=True):
        assert torch.equal(got, expected.repeat(5, *[1] * (expected.ndim - 1)))
        assert got.data_ptr() == expected.data_ptr()
    with pytest.raises(RuntimeError, match="expanded size"):
        cond(2).expand(5)


def test_to_converts_every_field() -> None:
    assert [x.dtype for x in fields(cond(2).to(torch.float64))] == [torch.float64] * 3
    assert torch.equal(cond(2).to("cpu", torch.float16).states, cond(2).states.half())


def test_fields_that_are_not_read_stay_none() -> None:
    plain = cond(2, full=False)
    for each in (Cond.cat([plain, plain]), plain[:1].expand(3), plain.to(torch.float16)):
        assert each.pooled is None
        assert each.extra is None
    with pytest.raises(TypeError):
        Cond.cat([plain, cond(1)])
