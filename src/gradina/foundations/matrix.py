"""Matrix multiplication in three ways: each is faster than the one before, and the result is the same."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

Matrix = Sequence[Sequence[float]]


def by_index(a: Matrix, b: Matrix) -> list[list[float]]:
    """By definition: c[i][j] is the sum over k of a[i][k] · b[k][j]."""
    rows, inner, columns = product_shape(a, b)
    c = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                c[i][j] += a[i][k] * b[k][j]
    return c


def by_rows(a: Matrix, b: Matrix) -> list[list[float]]:
    """Without indexing: iterates over rows and columns, and accumulates in a local variable."""
    product_shape(a, b)
    columns = list(zip(*b, strict=True))
    c = []
    for row in a:
        sums = []
        for column in columns:
            total = 0.0
            for x, y in zip(row, column, strict=True):
                total += x * y
            sums.append(total)
        c.append(sums)
    return c


def by_library(a: Matrix, b: Matrix) -> list[list[float]]:
    """The inner loop runs in the standard library, which is written in C."""
    product_shape(a, b)
    columns = list(zip(*b, strict=True))
    return [[float(sum(map(mul, row, column))) for column in columns] for row in a]


def product_shape(a: Matrix, b: Matrix) -> tuple[int, int, int]:
    """Rows of a, the inner dimension, columns of b. Raises ValueError for matrices that cannot be multiplied."""
    for name, matrix in (("a", a), ("b", b)):
        if not matrix or not matrix[0] or any(len(row) != len(matrix[0]) for row in matrix):
            raise ValueError(f"{name}: expected rows of one length, at least one number long")
    if len(a[0]) != len(b):
        raise ValueError(
            f"a is {len(a)}x{len(a[0])} and b is {len(b)}x{len(b[0])}: expected as many columns of a as rows of b"
        )
    return len(a), len(b), len(b[0])
