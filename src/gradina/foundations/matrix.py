"""The product of two matrices, in ways that are each quicker than the one before, and equal."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

Matrix = Sequence[Sequence[float]]


def by_index(a: Matrix, b: Matrix) -> list[list[float]]:
    """As the definition says: c[i][j] is the sum over k of a[i][k] · b[k][j]."""
    rows, inner, columns = shape_of_product(a, b)
    c = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                c[i][j] += a[i][k] * b[k][j]
    return c


def by_rows(a: Matrix, b: Matrix) -> list[list[float]]:
    """Nothing is looked up twice: rows are walked along, and a sum is kept where it can be reached at once."""
    shape_of_product(a, b)
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
    """The inner loop is the standard library's, which is written in C."""
    shape_of_product(a, b)
    columns = list(zip(*b, strict=True))
    return [[float(sum(map(mul, row, column))) for column in columns] for row in a]


def shape_of_product(a: Matrix, b: Matrix) -> tuple[int, int, int]:
    """Rows of a, what is summed over, columns of b. Raises ValueError, saying the shapes, where they do not fit."""
    for name, matrix in (("a", a), ("b", b)):
        if not matrix or not matrix[0] or any(len(row) != len(matrix[0]) for row in matrix):
            raise ValueError(f"{name}: expected rows of one length, at least one number long")
    if len(a[0]) != len(b):
        raise ValueError(
            f"a is {len(a)}x{len(a[0])} and b is {len(b)}x{len(b[0])}: expected as many columns of a as rows of b"
        )
    return len(a), len(b), len(b[0])
