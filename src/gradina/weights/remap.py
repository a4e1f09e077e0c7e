"""One small engine that renames parameters: a table row says what a parameter is called here and elsewhere.

A pattern has indices as `{i}`. Ours is matched; a foreign name is written from the indices found, and from others
computed of them (`Indices`). ` | rule` after a foreign name says how its values differ.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gradina.errors import WeightsError

Rows = tuple[tuple[str, ...], ...]
Indices = Mapping[str, Callable[[Mapping[str, int]], int]]


@dataclass(frozen=True)
class Table:
    """Names of one network's parameters: our column, called "ours", and one for each foreign dialect."""

    columns: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Source:
    """The tensor of a foreign file in which a parameter of ours lies, and how its values differ."""

    name: str
    rule: str = "same"


@dataclass(frozen=True)
class Rule:
    """How values differ: `read` makes ours of the foreign tensor, `write` is its inverse over all that share it."""

    read: Callable[[Tensor], Tensor]
    write: Callable[..., Tensor]
    order: int = 0  # of this parameter among those that share one foreign tensor


def _third(n: int) -> Rule:
    return Rule(lambda x: x.chunk(3)[n], lambda *qkv: torch.cat(qkv), order=n)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1) if x.ndim == 4 else x


RULES: dict[str, Rule] = {
    "same":      Rule(lambda x: x, lambda x: x),
    "transpose": Rule(lambda x: x.T.contiguous(), lambda x: x.T.contiguous()),
    "1x1":       Rule(_flat, lambda x: x[..., None, None] if x.ndim == 2 else x),
    "flat":      Rule(_flat, lambda x: x),
    "first":     _third(0),
    "second":    _third(1),
    "third":     _third(2),
}  # fmt: skip


def within(rows: Rows, *stems: str) -> Rows:
    """The rows of a module under its name in each column; a module may occur many times."""
    return tuple(tuple(f"{stem}.{name}" for stem, name in zip(stems, row, strict=True)) for row in rows)


def sources(
    ours: Iterable[str], table: Table, dialect: str, indices: Indices | None = None, prefix: str = ""
) -> dict[str, Source]:
    """Where each of our parameters lies in a file of that dialect; raises WeightsError for one that no row has."""
    column = table.columns.index(dialect)
    patterns = [(_pattern(row[0]), row[column]) for row in table.rows]
    return {name: _source(name, patterns, indices or {}, prefix) for name in ours}


def read(weights: Mapping[str, Tensor], where: Mapping[str, Source]) -> dict[str, Tensor]:
    """Our parameters, taken from a foreign file's; views wherever the rule allows."""
    return {ours: RULES[source.rule].read(weights[source.name]) for ours, source in where.items()}


def write(ours: Mapping[str, Tensor], where: Mapping[str, Source]) -> dict[str, Tensor]:
    """A foreign file's parameters, made of ours: the exact inverse of `read`."""
    shared: dict[str, list[tuple[Rule, Tensor]]] = defaultdict(list)
    for name, source in where.items():
        shared[source.name].append((RULES[source.rule], ours[name]))
    foreign = {}
    for name, parts in shared.items():
        parts.sort(key=lambda part: part[0].order)
        foreign[name] = parts[0][0].write(*(tensor for _, tensor in parts))
    return foreign


def unclaimed(names: Iterable[str], where: Mapping[str, Source], dropped: Iterable[str] = ()) -> list[str]:
    """Foreign names that no parameter of ours is read from and that match no `dropped` pattern (`*` is anything)."""
    used = {source.name for source in where.values()}
    ignored = wildcards(dropped)
    return [name for name in names if name not in used and not ignored.match(name)]


def wildcards(patterns: Iterable[str]) -> re.Pattern[str]:
    """A regular expression of names that one of the patterns fits: `*` is anything, `[AB]` one of these letters."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


@cache
def _pattern(ours: str) -> re.Pattern[str]:
    """`down.{i}.res` as a regular expression with a named group for each index."""
    parts = re.split(r"\{(\w+)\}", ours)
    return re.compile("".join(f"(?P<{p}>\\d+)" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _source(name: str, patterns: list[tuple[re.Pattern[str], str]], indices: Indices, prefix: str) -> Source:
    stem, dot, leaf = name.rpartition(".")
    for pattern, foreign in patterns:
        for tried, ending in ((name, ""), (stem, dot + leaf)):
            match = pattern.fullmatch(tried)
            if match:
                found = {key: int(value) for key, value in match.groupdict().items()}
                computed = {key: rule(found) for key, rule in indices.items() if f"{{{key}}}" in foreign}
                written, _, rule = foreign.partition(" | ")
                return Source(prefix + written.format(**found, **computed) + ending, rule or "same")
    raise WeightsError(f"no row of the key tables has our parameter {name!r}")
