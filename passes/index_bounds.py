"""How small and how large an integer expression can be."""

from __future__ import annotations

from math import inf
from typing import TypeAlias

from omnigraph.passes.index_expression import (
    Apply,
    Choice,
    Coordinate,
    Element,
    Expression,
    Length,
    Linear,
    table,
)

#: The least and the greatest number, infinite where none is known.
Bounds: TypeAlias = tuple[float, float]


def bounds(expression: Expression) -> Bounds:
    """Numbers that an integer is never below and never above, infinite where none is known."""
    if isinstance(expression, Linear):
        low = high = float(expression.constant)
        for term, factor in expression.terms:
            ends = sorted(factor * end for end in bounds(term))
            low, high = low + ends[0], high + ends[1]
        return low, high
    if isinstance(expression, Coordinate):
        least = -inf if expression.signed else 0
        return least, inf if expression.size is None else expression.size - 1
    if isinstance(expression, Length):
        return 0, inf
    if isinstance(expression, Choice):
        ends = [bounds(expression.then), bounds(expression.otherwise)]
        return min(low for low, _ in ends), max(high for _, high in ends)
    if isinstance(expression, Element) and expression.is_table:
        array = table(expression.value)
        return (float(array.min()), float(array.max())) if array.size else (-inf, inf)
    if isinstance(expression, Apply):
        return _bounds_of_op(expression.op, [bounds(arg) for arg in expression.args])
    return -inf, inf


def _bounds_of_op(op: str, args: list[Bounds]) -> Bounds:
    (low, high), other = args[0], args[-1]
    if op == "Abs":
        least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        return least, max(abs(low), abs(high))
    if op in ("Min", "Max"):
        pick = min if op == "Min" else max
        return pick(a for a, _ in args), pick(b for _, b in args)
    if op == "Mod" and other[0] > 0:
        return 0, min(other[1] - 1, high) if low >= 0 else other[1] - 1
    if op == "Div" and low >= 0 and other[0] > 0:
        return low // other[1] if low < inf and other[1] < inf else 0, high / other[0]
    if op == "Mul" and low >= 0 and other[0] >= 0:
        top = 0.0 if 0 in (high, other[1]) else high * other[1]
        return low * other[0], top
    return -inf, inf
