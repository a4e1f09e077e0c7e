"""Interleaved timing: order, statistics, failures."""

from __future__ import annotations

import time

import pytest

from gradina.bench.timing import Failed, Times, medians, time_interleaved


def test_rounds_alternate_the_order() -> None:
    order: list[str] = []
    runners = {"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.002))}
    times = time_interleaved(runners, rounds=3)
    assert "".join(order) == "baabbaab"
    assert isinstance(a := times["a"], Times)
    assert isinstance(b := times["b"], Times)
    assert [len(a.seconds), len(b.seconds)] == [3, 3]
    assert a.ratios(b).median > 1


def test_median_quartiles_and_ratios() -> None:
    one, two = Times((1.0, 2.0, 3.0, 10.0, 2.0)), Times((2.0, 4.0, 6.0, 5.0, 4.0))
    assert one.median == 2
    assert one.quartiles == (2, 3)
    assert one.ratios(two).median == 2
    assert Times((3.0,)).quartiles == (3, 3)


def test_a_failed_runner_drops_out_and_the_others_continue() -> None:
    calls = iter(range(10))
    runners = {"a": lambda: None, "b": lambda: 1 // (1 - next(calls)), "c": Failed.of(MemoryError())}
    times = time_interleaved(runners, rounds=3)
    assert isinstance(times["a"], Times)
    assert len(times["a"].seconds) == 3
    assert times["b"] == Failed("ZeroDivisionError: integer division or modulo by zero")
    assert times["c"] == Failed("MemoryError: MemoryError()")
    with pytest.raises(RuntimeError, match="b: ZeroDivisionError"):
        medians({"b": lambda: 1 / 0}, rounds=1)
