"""The least and the greatest number of an expression, by interval arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import inf, isfinite, isnan
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.index.evaluation import compute_op
from omnigraph.passes.analysis.index.expression import (
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
    table,
)

#: The least and the greatest number, infinite where none is known; a predicate is 0 or 1.
Bounds: TypeAlias = tuple[float, float]
_ANY: Bounds = (-inf, inf)
#: Ops that are monotone in each argument: the ends of intervals give the ends of the result.
_MONOTONE = {"Add", "Sub", "Neg", "Log", "Exp", "Sqrt", "Floor", "Ceil", "Round", "Min", "Max"}
_NO_BOUNDS: dict[str, Bounds] = {}


def bounds(expression: Expression, known: Mapping[str, Bounds] = _NO_BOUNDS) -> Bounds:
    """The least and the greatest number that an expression can be.

    Args:
        known: closer bounds of coordinates, by name.
    """
    if isinstance(expression, Coordinate):
        least = -inf if expression.signed else 0
        most = inf if expression.size is None else expression.size - 1
        return known.get(expression.name, (least, most))
    if isinstance(expression, Length):
        return 0, inf
    if isinstance(expression, Number):
        return (-inf, inf) if isnan(expression.value) else (expression.value, expression.value)
    if isinstance(expression, Element):
        return _of_element(expression, known)
    parts = [bounds(part, known) for part in expression.parts]
    if isinstance(expression, Linear):
        low = high = float(expression.constant)
        for part, (_, factor) in zip(parts, expression.terms, strict=True):
            ends = sorted(factor * end for end in part)
            low, high = low + ends[0], high + ends[1]
        return low, high
    if isinstance(expression, Choice):
        if parts[0][0] == parts[0][1]:
            return parts[1] if parts[0][0] else parts[2]
        return min(parts[1][0], parts[2][0]), max(parts[1][1], parts[2][1])
    if isinstance(expression, Apply):
        return _of_op(expression, parts)
    return _of_predicate(expression, parts)


def settled(expression: Expression, name: str, within: Bounds) -> bool:
    """Whether an expression is the same for all numbers of a coordinate within bounds."""
    if name not in coordinates(expression):
        return True
    low, high = bounds(expression, {name: within})
    if low == high:
        return True
    if isinstance(expression, Choice):
        ends = bounds(expression.condition, {name: within})
        if ends[0] == ends[1]:
            return settled(expression.parts[1 if ends[0] else 2], name, within)
    parts = expression.parts
    return bool(parts) and all(settled(part, name, within) for part in parts)


def _of_element(expression: Element, known: Mapping[str, Bounds]) -> Bounds:
    if not expression.is_table:
        return _ANY
    array = table(expression.value)
    for axis, index in enumerate(expression.index):
        low, high = bounds(index, known)
        if low < 0:
            continue
        last = array.shape[axis] - 1
        picked = slice(int(min(low, last)), int(min(high, last)) + 1)
        array = array[(slice(None),) * axis + (picked,)]
    if not array.size or array.dtype.kind not in "iufb":
        return _ANY
    return float(array.min()), float(array.max())


def _of_predicate(expression: Expression, parts: Sequence[Bounds]) -> Bounds:
    low, high = parts[0]
    if isinstance(expression, NonNegative):
        return float(low >= 0), float(high >= 0)
    if isinstance(expression, IsZero):
        return float(low == high == 0), float(low <= 0 <= high)
    if isinstance(expression, Not):
        return 1 - high, 1 - low
    assert isinstance(expression, All | Any)
    pick = min if isinstance(expression, All) else max
    return pick(a for a, _ in parts), pick(b for _, b in parts)


def _of_op(expression: Apply, args: Sequence[Bounds]) -> Bounds:
    op, (low, high), other = expression.op, args[0], args[-1]
    if op == "Abs":
        least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        return least, max(abs(low), abs(high))
    if op in ("Min", "Max"):
        pick = min if op == "Min" else max
        return pick(a for a, _ in args), pick(b for _, b in args)
    if op == "Cast":
        return _at_corners(expression, args) if expression.dtype != ir.DataType.BOOL else (0, 1)
    if expression.dtype.is_integer():
        return _of_integers(op, args)
    if op in _MONOTONE:
        if op in ("Log", "Sqrt") and low < 0:
            return _ANY
        return _at_corners(expression, args)
    if op == "Mul" or (op == "Div" and (other[0] > 0 or other[1] < 0)):
        return _at_corners(expression, args)
    return _ANY if expression.dtype != ir.DataType.BOOL else (0, 1)


def _of_integers(op: str, args: Sequence[Bounds]) -> Bounds:
    (low, high), other = args[0], args[-1]
    if op == "Mod" and other[0] > 0:
        return 0, min(other[1] - 1, high) if low >= 0 else other[1] - 1
    if op == "Div" and low >= 0 and other[0] > 0:
        most = high // other[0] if high < inf else inf
        return low // other[1] if low < inf and other[1] < inf else 0, most
    if op == "Mul" and low >= 0 and other[0] >= 0:
        return low * other[0], 0.0 if 0 in (high, other[1]) else high * other[1]
    return _ANY


def _at_corners(expression: Apply, args: Sequence[Bounds]) -> Bounds:
    """The least and the greatest result at the ends of the arguments, rounded as by the op."""
    found = []
    for corner in product(*args):
        if expression.dtype.is_integer() and not isfinite(corner[0]):
            found.append(corner[0])
            continue
        kinds = [np.float64 if a.type.is_integer() else a.type.numpy() for a in expression.args]
        arrays = [np.asarray(x, kind) for x, kind in zip(corner, kinds, strict=True)]
        result = float(compute_op(expression.op, arrays, expression.dtype))
        if isnan(result):
            return _ANY
        found.append(result)
    return min(found), max(found)
