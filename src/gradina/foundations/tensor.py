"""Tensors with reverse-mode autograd: flat lists of floats and six differentiable operations.

Whatever only moves elements (reshape, permute, broadcast, pad, im2col) is one operation, `gather`: for each element of
the result the index of its source. Its backward is a scatter-add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import product
from operator import add, mul
from typing import Any

Shape = tuple[int, ...]
Values = list[float]
Backward = Callable[[Values], Sequence[Values]]  # gradient of the result -> gradients of the parents

PADDING = -1  # an index that gathers 0


class Tensor:
    """Values in row-major order, from nested lists or from a flat list and a shape.

    With `requires_grad`, `backward` of a result accumulates the gradient in `grad`. Raises ValueError for ragged lists.
    """

    def __init__(self, values: Any, shape: Shape | None = None, requires_grad: bool = False) -> None:
        self.shape = _shape(values) if shape is None else tuple(shape)
        self.values: Values = _flat(values) if shape is None else [float(v) for v in values]
        if len(self.values) != math.prod(self.shape):
            raise ValueError(
                f"got {len(self.values)} values, expected {math.prod(self.shape)} for {as_text(self.shape)}"
            )
        self.requires_grad = requires_grad
        self.grad: Values | None = None
        self._parents: tuple[Tensor, ...] = ()
        self._backward: Backward | None = None

    def __repr__(self) -> str:
        return f"Tensor({self.tolist()})"

    def tolist(self) -> Any:
        """Nested lists; a float for a scalar."""
        return _nested(self.values, self.shape)

    def item(self) -> float:
        """The value of a tensor with one element."""
        if len(self.values) != 1:
            raise ValueError(f"got {as_text(self.shape)}, expected one number")
        return self.values[0]

    # The six operations

    def gather(self, index: Sequence[int], shape: Shape) -> Tensor:
        """The elements at these indices, in a new shape."""
        values = self.values

        def backward(grad: Values) -> Sequence[Values]:
            grad_values = [0.0] * len(values)
            for i, g in zip(index, grad, strict=True):
                if i != PADDING:
                    grad_values[i] += g
            return (grad_values,)

        return _result([values[i] if i != PADDING else 0.0 for i in index], shape, (self,), backward)

    def __add__(self, other: Tensor | float) -> Tensor:
        a, b = _broadcast_pair(self, other)
        return _result(list(map(add, a.values, b.values)), a.shape, (a, b), lambda grad: (grad, grad))

    def __mul__(self, other: Tensor | float) -> Tensor:
        a, b = _broadcast_pair(self, other)
        x, y = a.values, b.values
        return _result(
            list(map(mul, x, y)), a.shape, (a, b), lambda grad: (list(map(mul, grad, y)), list(map(mul, grad, x)))
        )

    def apply(self, function: Callable[[float], float], derivative: Callable[[float, float], float]) -> Tensor:
        """function(x) of each element; `derivative(x, function(x))` is its derivative."""
        x = self.values
        y = [function(v) for v in x]
        return _result(
            y, self.shape, (self,), lambda grad: ([g * derivative(a, b) for g, a, b in zip(grad, x, y, strict=True)],)
        )

    def sum(self, axis: int | None = None) -> Tensor:
        """Over all elements, or along one axis, which is removed."""
        if axis is None:
            count = len(self.values)
            return _result([math.fsum(self.values)], (), (self,), lambda grad: (grad * count,))
        axis = _axis(axis, self.shape)
        last = self.permute(*(i for i in range(len(self.shape)) if i != axis), axis)
        n = self.shape[axis]
        sums = [math.fsum(last.values[i : i + n]) for i in range(0, len(last.values), n)]
        return _result(sums, last.shape[:-1], (last,), lambda grad: ([g for g in grad for _ in range(n)],))

    def __matmul__(self, other: Tensor) -> Tensor:
        if len(self.shape) != 2 or len(other.shape) != 2 or self.shape[1] != other.shape[0]:
            raise ValueError(
                f"cannot multiply {as_text(self.shape)} by {as_text(other.shape)}: expected n x k and k x m"
            )
        (n, k), m = self.shape, other.shape[1]
        a, b = self.values, other.values

        def backward(grad: Values) -> Sequence[Values]:
            grad_a = _matmul(grad, _transposed(b, k, m), n, m, k) if self.requires_grad else []
            grad_b = _matmul(_transposed(a, n, k), grad, k, n, m) if other.requires_grad else []
            return grad_a, grad_b

        return _result(_matmul(a, b, n, k, m), (n, m), (self, other), backward)

    # Compositions of these

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
        """The exponential of each element."""
        return self.apply(math.exp, lambda _, y: y)

    def log(self) -> Tensor:
        """The natural logarithm of each element."""
        return self.apply(math.log, lambda x, _: 1 / x)

    def mean(self, axis: int | None = None) -> Tensor:
        """Over all elements, or along one axis, which is removed."""
        count = len(self.values) if axis is None else self.shape[_axis(axis, self.shape)]
        return self.sum(axis) * (1 / count)

    def reshape(self, *shape: int) -> Tensor:
        """The same elements in another shape."""
        if math.prod(shape) != len(self.values):
            raise ValueError(f"cannot reshape {as_text(self.shape)} to {as_text(shape)}")
        return self.gather(range(len(self.values)), shape)

    def permute(self, *order: int) -> Tensor:
        """With the axes in another order."""
        if sorted(order) != list(range(len(self.shape))):
            raise ValueError(f"order: got {order}, expected each of the {len(self.shape)} axes once")
        return self.gather(_permute_index(self.shape, order), tuple(self.shape[i] for i in order))

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix."""
        return self.permute(1, 0)

    def broadcast(self, shape: Shape) -> Tensor:
        """Repeated along axes that are missing or of length 1. Raises ValueError if that does not give the shape."""
        return self if shape == self.shape else self.gather(_broadcast_index(self.shape, shape), shape)

    def backward(self) -> None:
        """Accumulates the gradient of this scalar in `grad` of all leaves that require it."""
        if len(self.values) != 1:
            raise ValueError(f"got {as_text(self.shape)}, expected one number: take the sum or the mean of it first")
        grads: dict[int, Values] = {id(self): [1.0]}
        for tensor in reversed(_topological_order(self)):
            grad = grads.pop(id(tensor))
            if tensor._backward is None:
                if tensor.requires_grad:
                    tensor.grad = grad if tensor.grad is None else list(map(add, tensor.grad, grad))
                continue
            for parent, part in zip(tensor._parents, tensor._backward(grad), strict=True):
                if parent.requires_grad:
                    known = grads.get(id(parent))
                    grads[id(parent)] = part if known is None else list(map(add, known, part))


def _result(values: Values, shape: Shape, parents: tuple[Tensor, ...], backward: Backward) -> Tensor:
    result = Tensor.__new__(Tensor)
    result.values, result.shape, result.grad = values, shape, None
    result.requires_grad = any(parent.requires_grad for parent in parents)
    result._parents, result._backward = (parents, backward) if result.requires_grad else ((), None)
    return result


def _topological_order(last: Tensor) -> list[Tensor]:
    """All ancestors that require a gradient, parents first."""
    order: list[Tensor] = []
    visited: set[int] = set()
    stack: list[tuple[Tensor, bool]] = [(last, False)]
    while stack:
        tensor, expanded = stack.pop()
        if expanded:
            order.append(tensor)
        elif id(tensor) not in visited:
            visited.add(id(tensor))
            stack += [(tensor, True), *((parent, False) for parent in tensor._parents if parent.requires_grad)]
    return order


def _broadcast_pair(a: Tensor, other: Tensor | float) -> tuple[Tensor, Tensor]:
    b = other if isinstance(other, Tensor) else Tensor([other], ())
    shape = broadcast_shape(a.shape, b.shape)
    return a.broadcast(shape), b.broadcast(shape)


def broadcast_shape(a: Shape, b: Shape) -> Shape:
    """The shape to which both broadcast: aligned at the end, sides are equal or 1. Raises ValueError."""
    axes = max(len(a), len(b))
    sides = zip((1,) * (axes - len(a)) + a, (1,) * (axes - len(b)) + b, strict=True)
    shape = tuple(max(x, y) if 1 in (x, y) else x if x == y else 0 for x, y in sides)
    if 0 in shape:
        raise ValueError(f"cannot broadcast {as_text(a)} and {as_text(b)}: sides have to be equal or 1")
    return shape


@cache
def _broadcast_index(shape: Shape, to: Shape) -> tuple[int, ...]:
    if len(shape) > len(to) or broadcast_shape(shape, to) != to:
        raise ValueError(f"cannot broadcast {as_text(shape)} to {as_text(to)}")
    strides = [0] * (len(to) - len(shape)) + [s if n > 1 else 0 for n, s in zip(shape, _strides(shape), strict=True)]
    return tuple(sum(map(mul, at, strides)) for at in product(*map(range, to)))


@cache
def _permute_index(shape: Shape, order: tuple[int, ...]) -> tuple[int, ...]:
    strides = _strides(shape)
    return tuple(sum(map(mul, at, [strides[i] for i in order])) for at in product(*(range(shape[i]) for i in order)))


def _strides(shape: Shape) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _matmul(a: Values, b: Values, n: int, k: int, m: int) -> Values:
    """(n, k) by (k, m)."""
    columns = [b[j::m] for j in range(m)]
    rows = (a[i : i + k] for i in range(0, n * k, k))
    return [sum(map(mul, row, column)) for row in rows for column in columns]


def _transposed(a: Values, n: int, m: int) -> Values:
    return [x for j in range(m) for x in a[j::m]] if n else []


def _axis(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: got {axis}, expected one of the {len(shape)} of {as_text(shape)}")
    return axis % len(shape)


def _shape(values: Any) -> Shape:
    if not isinstance(values, list | tuple):
        return ()
    shapes = {_shape(v) for v in values}
    if len(shapes) > 1:
        raise ValueError("expected rows of one length")
    return (len(values), *(shapes.pop() if shapes else ()))


def _flat(values: Any) -> Values:
    if not isinstance(values, list | tuple):
        return [float(values)]
    return [number for row in values for number in _flat(row)]


def _nested(values: Sequence[float], shape: Shape) -> Any:
    if not shape:
        return values[0]
    step = len(values) // shape[0] if shape[0] else 0
    return [_nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def as_text(shape: Iterable[int]) -> str:
    """2x3, or "a number" for the shape of a scalar."""
    return "x".join(map(str, shape)) or "a number"
