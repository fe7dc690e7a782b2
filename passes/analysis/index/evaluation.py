"""Computes an index expression as arrays, or makes the nodes that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.index.expression import (
    BOOL,
    All,
    Any,
    Apply,
    Choice,
    Coordinate,
    Element,
    Expression,
    IsZero,
    Length,
    Linear,
    NonNegative,
    Not,
    Number,
    coordinates,
    inside,
    table,
)
from omnigraph.passes.insertion import Inserter


def compute(expression: Expression, places: Mapping[str, np.ndarray]) -> np.ndarray:
    """The numbers of an expression.

    An index beyond a table reads its last element: this happens only in the branch that a choice
    does not take. Logarithms and powers are computed in float64 and rounded once, so that no
    library's last bit decides where a bucket ends.

    Args:
        places: arrays of coordinates and of lengths, by name; their shapes broadcast.

    Raises:
        KeyError: ``places`` lacks a coordinate or a length, or the expression reads data.
    """
    if isinstance(expression, Coordinate | Length):
        return np.asarray(places[expression.name], np.int64)
    if isinstance(expression, Number):
        return np.asarray(expression.value, expression.dtype.numpy())
    if isinstance(expression, Element):
        if not expression.is_table:
            raise KeyError(expression.text)
        array = table(expression.value)
        index = [compute(i, places) for i in expression.index]
        held = [np.clip(i, -n, n - 1) for i, n in zip(index, array.shape, strict=True)]
        return np.asarray(array[tuple(held)])
    parts = [compute(part, places) for part in expression.parts]
    if isinstance(expression, Linear):
        result = np.asarray(expression.constant, np.int64)
        for part, (_, factor) in zip(parts, expression.terms, strict=True):
            result = result + part * factor
        return result
    if isinstance(expression, NonNegative | IsZero):
        return np.asarray(parts[0] >= 0 if isinstance(expression, NonNegative) else parts[0] == 0)
    if isinstance(expression, Not):
        return np.logical_not(parts[0])
    if isinstance(expression, Choice):
        return np.where(*parts)
    if isinstance(expression, All | Any):
        join = np.logical_and if isinstance(expression, All) else np.logical_or
        return np.asarray(join.reduce(np.broadcast_arrays(*parts)))
    assert isinstance(expression, Apply)
    return compute_op(expression.op, parts, expression.dtype)


def compute_op(op: str, args: Sequence[np.ndarray], dtype: ir.DataType) -> np.ndarray:
    """An elementwise op on arrays, with a result of this dtype."""
    kind = dtype.numpy()
    with np.errstate(all="ignore"):
        if op == "Clip":
            return np.clip(args[0], args[1], args[2]).astype(kind)
        if op in ("Min", "Max"):
            join = np.minimum if op == "Min" else np.maximum
            return np.asarray(join.reduce(np.broadcast_arrays(*args))).astype(kind)
        if op in _ROUNDED_ONCE:
            wide = [np.asarray(arg, np.float64) for arg in args]
            return np.asarray(_ROUNDED_ONCE[op](*wide)).astype(kind)
        if op == "Cast" and args[0].dtype.kind == "f" and dtype != BOOL:
            return np.asarray(args[0]).astype(kind)
        if op == "Div" and args[0].dtype.kind in "iu":
            quotient = np.floor_divide(np.abs(args[0]), np.abs(args[1]))
            return np.asarray(quotient * np.sign(args[0]) * np.sign(args[1])).astype(kind)
        return np.asarray(_OPS[op](*args)).astype(kind)


_ROUNDED_ONCE: dict[str, Callable[..., np.ndarray]] = {
    "Log": np.log,
    "Exp": np.exp,
    "Pow": np.power,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tanh": np.tanh,
}
_OPS: dict[str, Callable[..., np.ndarray]] = {
    "Identity": lambda x: x,
    "Cast": lambda x: x,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Mod": np.mod,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sign": np.sign,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.round,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Relu": lambda x: np.maximum(x, 0),
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Equal": np.equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
    "Where": np.where,
}
#: The elementwise ops that an expression may hold.
ELEMENTWISE = frozenset({*_OPS, *_ROUNDED_ONCE, "Min", "Max", "Clip"})


def _is_known(expression: Expression, known: Mapping[str, np.ndarray]) -> bool:
    """Whether an expression depends on coordinates, and on known ones alone."""
    here = coordinates(expression)
    fixed = not any(
        isinstance(one, Length) or (isinstance(one, Element) and not one.is_table)
        for one in inside(expression)
    )
    return bool(here) and here <= known.keys() and fixed


class Emitter:
    """Makes the nodes that compute expressions, each part once.

    Args:
        before: inserts the nodes.
        graph: its inputs give the lengths, as their dimensions.
        places: an int64 value for each coordinate, by name; their shapes broadcast.
        elements: makes an element of a table or of data; by default by a Gather or a GatherND.
        known: coordinates whose numbers are known, as arrays that broadcast with ``places``; parts
            that depend on these alone become constants.
    """

    def __init__(
        self,
        before: Inserter,
        graph: ir.Graph,
        places: Mapping[str, ir.Value],
        elements: Callable[[Element], ir.Value] | None = None,
        known: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._before, self._graph, self._places = before, graph, places
        self._known = known or {}
        self._elements = elements or self._gathered
        self._made: dict[Expression, ir.Value] = {}

    def emit(self, expression: Expression) -> ir.Value:
        """The value of an expression at the places."""
        if expression not in self._made:
            self._made[expression] = self._emit(expression)
        return self._made[expression]

    def _emit(self, expression: Expression) -> ir.Value:
        op = self._before.op
        if _is_known(expression, self._known):
            return self._before.constant(compute(expression, self._known))
        if isinstance(expression, Coordinate):
            return self._places[expression.name]
        if isinstance(expression, Length):
            return self._length(expression.name)
        if isinstance(expression, Number):
            return self._before.constant(np.asarray(expression.value, expression.dtype.numpy()))
        if isinstance(expression, Linear):
            return self._sum(expression)
        if isinstance(expression, Element):
            return self._elements(expression)
        if isinstance(expression, NonNegative | IsZero):
            return self._comparison(expression)
        parts = [self.emit(part) for part in expression.parts]
        if isinstance(expression, Choice):
            return op("Where", *parts)
        if isinstance(expression, Not):
            return op("Not", *parts)
        if isinstance(expression, All | Any):
            result = parts[0]
            for part in parts[1:]:
                result = op("And" if isinstance(expression, All) else "Or", result, part)
            return result
        assert isinstance(expression, Apply)
        if expression.op == "Cast":
            return op("Cast", *parts, to=int(expression.dtype))
        return op(expression.op, *parts)

    def _sum(self, linear: Linear) -> ir.Value:
        positive = [(term, f) for term, f in linear.terms if f > 0]
        negative = [(term, -f) for term, f in linear.terms if f < 0]
        result = None if linear.constant == 0 and positive else linear.constant
        value = None if result is None else self._before.integer(result)
        for sign, terms in (("Add", positive), ("Sub", negative)):
            for term, factor in terms:
                part = self.emit(term)
                if factor != 1:
                    part = self._before.op("Mul", part, self._before.integer(factor))
                value = part if value is None else self._before.op(sign, value, part)
        assert value is not None
        return value

    def _comparison(self, expression: NonNegative | IsZero) -> ir.Value:
        """Compare the positive terms with the negative ones, so that the two broadcast late."""
        linear = expression.sum
        left = Linear(linear.constant, tuple((t, f) for t, f in linear.terms if f > 0))
        right = Linear(0, tuple((t, -f) for t, f in linear.terms if f < 0))
        op = "GreaterOrEqual" if isinstance(expression, NonNegative) else "Equal"
        return self._before.op(op, self.emit(left), self.emit(right))

    def _length(self, name: str) -> ir.Value:
        for value in self._graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if not isinstance(dim, int) and dim.value == name:
                    return self._before.length(value, axis)
        raise KeyError(name)

    def _within(self, expression: Element, axis: int) -> ir.Value:
        """An index, clipped to its table: a choice may not take the branch that reads it."""
        index = self.emit(expression.index[axis])
        if not expression.is_table or not expression.index[axis].terms:
            return index
        size = table(expression.value).shape[axis]
        ends = self._before.integer(-size), self._before.integer(size - 1)
        return self._before.op("Clip", index, *ends)

    def _gathered(self, expression: Element) -> ir.Value:
        op = self._before.op
        index = [self._within(expression, axis) for axis in range(len(expression.index))]
        if len(index) == 1:
            return op("Gather", expression.value, index[0], axis=0)
        whole = index[0]
        for one in index[1:]:
            whole = op("Add", whole, one)
        shape = op("Shape", whole)
        last = self._before.integers(-1)
        columns = [op("Unsqueeze", op("Expand", one, shape), last) for one in index]
        return op("GatherND", expression.value, op("Concat", *columns, axis=-1))
