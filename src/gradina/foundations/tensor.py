"""Tensors that know how they came about, and so their gradients: lists of numbers and six operations.

What only moves numbers (reshaping, transposing, broadcasting, padding, cutting out patches) is one operation, `gather`:
for each place of the result, where its number comes from. Its gradient goes back the way it came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import product as places
from operator import add, mul
from typing import Any

Shape = tuple[int, ...]
Numbers = list[float]
Back = Callable[[Numbers], Sequence[Numbers]]

NOWHERE = -1  # where a place of a gather takes 0


class Tensor:
    """Numbers in a shape, row by row; `learns` asks for a gradient, which `backward` of a result then leaves in `grad`.

    Made of nested lists, or of flat values and a shape. Raises ValueError for lists that have no shape.
    """

    def __init__(self, values: Any, shape: Shape | None = None, learns: bool = False) -> None:
        self.shape = _shape(values) if shape is None else tuple(shape)
        self.values: Numbers = _flat(values) if shape is None else [float(v) for v in values]
        if len(self.values) != math.prod(self.shape):
            raise ValueError(
                f"got {len(self.values)} numbers, expected {math.prod(self.shape)} for {_said(self.shape)}"
            )
        self.learns = learns
        self.grad: Numbers | None = None
        self._from: tuple[Tensor, ...] = ()
        self._back: Back | None = None

    def __repr__(self) -> str:
        return f"Tensor({self.tolist()})"

    def tolist(self) -> Any:
        """Nested lists; for no axes, a number."""
        return _nested(self.values, self.shape)

    def item(self) -> float:
        """The one number that it holds."""
        if len(self.values) != 1:
            raise ValueError(f"got {_said(self.shape)}, expected one number")
        return self.values[0]

    # The six operations

    def gather(self, index: Sequence[int], shape: Shape) -> Tensor:
        """The numbers at these places, in a new shape."""
        values = self.values

        def back(grad: Numbers) -> Sequence[Numbers]:
            found = [0.0] * len(values)
            for i, g in zip(index, grad, strict=True):
                if i != NOWHERE:
                    found[i] += g
            return (found,)

        return _made([values[i] if i != NOWHERE else 0.0 for i in index], shape, (self,), back)

    def __add__(self, other: Tensor | float) -> Tensor:
        a, b = _alike(self, other)
        return _made(list(map(add, a.values, b.values)), a.shape, (a, b), lambda grad: (grad, grad))

    def __mul__(self, other: Tensor | float) -> Tensor:
        a, b = _alike(self, other)
        x, y = a.values, b.values
        return _made(
            list(map(mul, x, y)), a.shape, (a, b), lambda grad: (list(map(mul, grad, y)), list(map(mul, grad, x)))
        )

    def apply(self, function: Callable[[float], float], derivative: Callable[[float, float], float]) -> Tensor:
        """function(x) of each number; `derivative(x, function(x))` is its derivative."""
        x = self.values
        y = [function(v) for v in x]
        return _made(
            y, self.shape, (self,), lambda grad: ([g * derivative(a, b) for g, a, b in zip(grad, x, y, strict=True)],)
        )

    def sum(self, axis: int | None = None) -> Tensor:
        """Over all numbers, or along an axis, which is then gone."""
        if axis is None:
            count = len(self.values)
            return _made([math.fsum(self.values)], (), (self,), lambda grad: (grad * count,))
        axis = _axis(axis, self.shape)
        last = self.moved(axis, len(self.shape) - 1)
        n = self.shape[axis]
        sums = [math.fsum(last.values[i : i + n]) for i in range(0, len(last.values), n)]
        return _made(sums, last.shape[:-1], (last,), lambda grad: ([g for g in grad for _ in range(n)],))

    def __matmul__(self, other: Tensor) -> Tensor:
        if len(self.shape) != 2 or len(other.shape) != 2 or self.shape[1] != other.shape[0]:
            raise ValueError(f"cannot multiply {_said(self.shape)} by {_said(other.shape)}: expected n x k and k x m")
        (n, k), m = self.shape, other.shape[1]
        a, b = self.values, other.values

        def back(grad: Numbers) -> Sequence[Numbers]:
            grad_a = _product(grad, _turned(b, k, m), n, m, k) if self.learns else []
            grad_b = _product(_turned(a, n, k), grad, k, n, m) if other.learns else []
            return grad_a, grad_b

        return _made(_product(a, b, n, k, m), (n, m), (self, other), back)

    # What is made of them

    def __neg__(self) -> Tensor:
        return self * -1.0

    def __sub__(self, other: Tensor | float) -> Tensor:
        return self + -other

    def __truediv__(self, other: Tensor | float) -> Tensor:
        return self * (other**-1.0)

    def __pow__(self, power: float) -> Tensor:
        return self.apply(lambda x: x**power, lambda x, _: power * x ** (power - 1))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Tensor:
        return -self + other

    def __rtruediv__(self, other: float) -> Tensor:
        return self**-1.0 * other

    def exp(self) -> Tensor:
        """e to the power of each number."""
        return self.apply(math.exp, lambda _, y: y)

    def log(self) -> Tensor:
        """The natural logarithm of each number."""
        return self.apply(math.log, lambda x, _: 1 / x)

    def mean(self, axis: int | None = None) -> Tensor:
        """The sum over the count."""
        count = len(self.values) if axis is None else self.shape[_axis(axis, self.shape)]
        return self.sum(axis) * (1 / count)

    def reshape(self, *shape: int) -> Tensor:
        """The same numbers in another shape."""
        if math.prod(shape) != len(self.values):
            raise ValueError(f"cannot see {_said(self.shape)} as {_said(shape)}: that is {math.prod(shape)} numbers")
        return self.gather(range(len(self.values)), shape)

    def moved(self, axis: int, to: int) -> Tensor:
        """With one axis moved to another place among the others."""
        order = [i for i in range(len(self.shape)) if i != axis]
        order.insert(to, axis)
        return self.permute(*order)

    def permute(self, *order: int) -> Tensor:
        """With the axes in another order."""
        if sorted(order) != list(range(len(self.shape))):
            raise ValueError(f"order: got {order}, expected each of the {len(self.shape)} axes once")
        return self.gather(_permuted(self.shape, order), tuple(self.shape[i] for i in order))

    @property
    def T(self) -> Tensor:
        """A matrix with rows and columns exchanged."""
        return self.permute(1, 0)

    def broadcast(self, shape: Shape) -> Tensor:
        """Repeated along axes that it lacks, or that are 1 long. Raises ValueError where that gives no such shape."""
        return self if shape == self.shape else self.gather(_spread(self.shape, shape), shape)

    def backward(self) -> None:
        """Adds to `grad` of everything that learns how much this number would change with it."""
        if len(self.values) != 1:
            raise ValueError(f"got {_said(self.shape)}, expected one number: take the sum or the mean of it first")
        grads: dict[int, Numbers] = {id(self): [1.0]}
        for tensor in reversed(_ordered(self)):
            grad = grads.pop(id(tensor))
            if tensor.learns and tensor._back is None:
                tensor.grad = grad if tensor.grad is None else list(map(add, tensor.grad, grad))
            if tensor._back is None:
                continue
            for parent, part in zip(tensor._from, tensor._back(grad), strict=True):
                if parent.learns:
                    known = grads.get(id(parent))
                    grads[id(parent)] = part if known is None else list(map(add, known, part))


def _made(values: Numbers, shape: Shape, parents: tuple[Tensor, ...], back: Back) -> Tensor:
    made = Tensor.__new__(Tensor)
    made.values, made.shape, made.grad = values, shape, None
    made.learns = any(parent.learns for parent in parents)
    made._from, made._back = (parents, back) if made.learns else ((), None)
    return made


def _ordered(last: Tensor) -> list[Tensor]:
    """All that a tensor came from and that learns, each after its own parents."""
    order: list[Tensor] = []
    seen: set[int] = set()
    waiting: list[tuple[Tensor, bool]] = [(last, False)]
    while waiting:
        tensor, ready = waiting.pop()
        if ready:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            waiting += [(tensor, True), *((parent, False) for parent in tensor._from if parent.learns)]
    return order


def _alike(a: Tensor, other: Tensor | float) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape; a number stands for as many as are needed."""
    b = other if isinstance(other, Tensor) else Tensor([other], ())
    shape = common(a.shape, b.shape)
    return a.broadcast(shape), b.broadcast(shape)


def common(a: Shape, b: Shape) -> Shape:
    """The shape to which both can be repeated: aligned at the end, sides are equal or 1. Raises ValueError."""
    long = max(len(a), len(b))
    sides = zip((1,) * (long - len(a)) + a, (1,) * (long - len(b)) + b, strict=True)
    found = tuple(max(x, y) if 1 in (x, y) else x if x == y else 0 for x, y in sides)
    if 0 in found:
        raise ValueError(f"{_said(a)} and {_said(b)} do not go together: sides have to be equal, or 1")
    return found


@cache
def _spread(shape: Shape, to: Shape) -> tuple[int, ...]:
    if len(shape) > len(to) or common(shape, to) != to:
        raise ValueError(f"{_said(shape)} cannot be repeated to {_said(to)}")
    steps = [0] * (len(to) - len(shape)) + [s if n > 1 else 0 for n, s in zip(shape, _steps(shape), strict=True)]
    return tuple(sum(map(mul, at, steps)) for at in places(*map(range, to)))


@cache
def _permuted(shape: Shape, order: tuple[int, ...]) -> tuple[int, ...]:
    steps = _steps(shape)
    return tuple(sum(map(mul, at, [steps[i] for i in order])) for at in places(*(range(shape[i]) for i in order)))


def _steps(shape: Shape) -> list[int]:
    """How far apart neighbours along each axis lie."""
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _product(a: Numbers, b: Numbers, n: int, k: int, m: int) -> Numbers:
    """Of n x k and k x m numbers."""
    columns = [b[j::m] for j in range(m)]
    rows = (a[i : i + k] for i in range(0, n * k, k))
    return [sum(map(mul, row, column)) for row in rows for column in columns]


def _turned(a: Numbers, n: int, m: int) -> Numbers:
    """Rows and columns of n x m numbers exchanged."""
    return [x for j in range(m) for x in a[j::m]] if n else []


def _axis(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: got {axis}, expected one of the {len(shape)} of {_said(shape)}")
    return axis % len(shape)


def _shape(values: Any) -> Shape:
    if not isinstance(values, list | tuple):
        return ()
    below = {_shape(v) for v in values}
    if len(below) > 1:
        raise ValueError("expected rows of one length")
    return (len(values), *(below.pop() if below else ()))


def _flat(values: Any) -> Numbers:
    if not isinstance(values, list | tuple):
        return [float(values)]
    return [number for row in values for number in _flat(row)]


def _nested(values: Sequence[float], shape: Shape) -> Any:
    if not shape:
        return values[0]
    step = len(values) // shape[0] if shape[0] else 0
    return [_nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _said(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
