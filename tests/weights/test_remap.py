"""Renaming of parameters, by small tables."""

import pytest
import torch

from gradina.errors import WeightsError
from gradina.weights.remap import Source, Table, read, sources, unclaimed, within, write

TABLE = Table(
    ("ours", "theirs"),
    (
        ("in", "entry"),
        *within((("q.weight", "qkv | first"), ("k.weight", "qkv | second"), ("v.weight", "qkv | third")),
                "block.{i}", "layers.{n}"),
        ("out.weight", "exit | transpose"),
        ("conv", "conv.{i2} | 1x1"),
    ),
)  # fmt: skip
NUMBERS = {"n": lambda at: 10 - at["i"], "i2": lambda at: 7}


def test_foreign_names_have_indices_prefix_and_leaf():
    where = sources(["in.weight", "in.bias", "block.3.k.weight", "conv.weight"], TABLE, "theirs", NUMBERS, "net.")
    assert where["in.weight"] == Source("net.entry.weight", "same")
    assert where["in.bias"] == Source("net.entry.bias", "same")
    assert where["block.3.k.weight"] == Source("net.layers.7.qkv", "second")
    assert where["conv.weight"] == Source("net.conv.7.weight", "1x1")


def test_write_is_the_inverse_of_read():
    ours = {f"block.0.{n}.weight": torch.randn(4, 4) for n in "vkq"}
    ours |= {"out.weight": torch.randn(3, 5), "conv.weight": torch.randn(6, 2), "conv.bias": torch.randn(6)}
    where = sources(ours, TABLE, "theirs", NUMBERS)
    theirs = write(ours, where)
    assert theirs["layers.10.qkv"].shape == (12, 4)
    assert torch.equal(theirs["layers.10.qkv"][4:8], ours["block.0.k.weight"])
    assert theirs["exit"].shape == (5, 3)
    assert theirs["conv.7.weight"].shape == (6, 2, 1, 1)
    assert theirs["conv.7.bias"].shape == (6,)
    back = read(theirs, where)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], x) for name, x in ours.items())


def test_read_returns_views():
    theirs = {
        "entry.weight": torch.randn(2, 2),
        "layers.9.qkv": torch.randn(6, 2),
        "conv.7.weight": torch.randn(2, 2, 1, 1),
    }
    where = sources(["in.weight", "block.1.v.weight", "conv.weight"], TABLE, "theirs", NUMBERS)
    ours = read(theirs, where)
    for mine, name in (
        ("in.weight", "entry.weight"),
        ("block.1.v.weight", "layers.9.qkv"),
        ("conv.weight", "conv.7.weight"),
    ):
        assert ours[mine].untyped_storage().data_ptr() == theirs[name].untyped_storage().data_ptr()


def test_unclaimed_lists_names_that_are_not_dropped():
    where = sources(["in.weight"], TABLE, "theirs")
    names = ["entry.weight", "ema.a.b", "ema", "exit"]
    assert unclaimed(names, where) == ["ema.a.b", "ema", "exit"]
    assert unclaimed(names, where, dropped=["ema.*"]) == ["ema", "exit"]


def test_unknown_parameter_is_named():
    with pytest.raises(WeightsError, match=r"'strange\.weight'"):
        sources(["strange.weight"], TABLE, "theirs")
