"""Which integers a value may be made of, so that it stays within given numbers.

A value that a Graph computes element by element from another, its source, is followed back: what is
asked of the value becomes what is asked of the source. An op without a rule asks nothing, so no
number is ruled out that the Graph accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TypeAlias

import onnx_ir as ir

from omnigraph.passes.analysis.index.bounds import bounds
from omnigraph.passes.analysis.index.dimensions import NotClosed
from omnigraph.passes.analysis.index.reading import IndexReader, read
from omnigraph.passes.matching import constant, input_at, scalar

#: Integers as intervals in order, both ends included, with gaps between them.
Integers: TypeAlias = tuple[tuple[float, float], ...]
ALL: Integers = ((-inf, inf),)

#: Ops that move elements, or add others, and change and drop none.
MOVES = frozenset(
    "Identity Reshape Flatten Unsqueeze Squeeze Transpose Expand Tile Pad Dropout".split()
)
#: The integers x for which ``x op c`` holds, for an integer c.
_COMPARISONS: dict[str, Callable[[float], Integers]] = {
    "Equal": lambda c: ((c, c),),
    "Less": lambda c: ((-inf, c - 1),),
    "LessOrEqual": lambda c: ((-inf, c),),
    "Greater": lambda c: ((c + 1, inf),),
    "GreaterOrEqual": lambda c: ((c, inf),),
}
_MIRRORED = {
    "Equal": "Equal",
    "Less": "Greater",
    "LessOrEqual": "GreaterOrEqual",
    "Greater": "Less",
    "GreaterOrEqual": "LessOrEqual",
}


def accepted(value: ir.Value, wanted: Integers, source: ir.Value) -> Integers:
    """The integers that ``source`` may hold where every element of ``value`` is in ``wanted``.

    `ALL` where the value does not depend on the source, or nothing can be said.
    """
    return _Source(source).accepted(value, wanted)


def union(one: Integers, other: Integers) -> Integers:
    """The integers of either."""
    merged: list[tuple[float, float]] = []
    for low, high in sorted((*one, *other)):
        if low > high:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def common(one: Integers, other: Integers) -> Integers:
    """The integers of both."""
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return tuple((low, high) for low, high in pairs if low <= high)


def others(integers: Integers) -> Integers:
    """All other integers."""
    low, found = -inf, []
    for start, end in integers:
        found.append((low, start - 1))
        low = end + 1
    found.append((low, inf))
    return tuple((a, b) for a, b in found if a <= b and a != inf and b != -inf)


class _Source:
    """Follows values back to one source, each once for the same question."""

    def __init__(self, source: ir.Value) -> None:
        self._source = source
        self._found: dict[tuple[ir.Value, Integers], Integers] = {}

    def accepted(self, value: ir.Value | None, wanted: Integers) -> Integers:
        if value is self._source:
            return wanted
        node = value.producer() if value is not None else None
        if value is None or node is None or node.domain != "" or wanted == ALL:
            return ALL
        key = value, wanted
        if key not in self._found:
            self._found[key] = self._through(node, wanted)
        return self._found[key]

    def _through(self, node: ir.Node, wanted: Integers) -> Integers:
        op = node.op_type
        if op in MOVES or (op == "Cast" and _is_integer(node.inputs[0])):
            return self.accepted(node.inputs[0], wanted)
        if op == "Concat":
            found = ALL
            for part in node.inputs:
                found = common(found, self.accepted(part, wanted))
            return found
        if op == "Where":
            return self._through_where(node, wanted)
        if op in ("Min", "Max", "Clip"):
            return self._through_limits(node, wanted)
        if op in ("Add", "Sub"):
            return self._through_sum(node, wanted)
        if op == "Neg":
            return self.accepted(node.inputs[0], _scaled(wanted, -1))
        if op == "Mul":
            return self._through_product(node, wanted)
        if op == "Div":
            divisor = scalar(node.inputs[1])
            rows = _multiplied(wanted, divisor) if divisor and divisor > 0 else ALL
            return self.accepted(node.inputs[0], rows)
        return ALL

    def _through_sum(self, node: ir.Node, wanted: Integers) -> Integers:
        """What both terms may be: each within what the ends of the other leave."""
        one, other = node.inputs
        assert one is not None and other is not None
        sign = 1 if node.op_type == "Add" else -1
        low, high = _ends(other)
        left = tuple(
            (a - max(sign * low, sign * high), b - min(sign * low, sign * high)) for a, b in wanted
        )
        found = self.accepted(one, union(left, ()))
        low, high = _ends(one)
        right = _scaled(tuple((a - high, b - low) for a, b in wanted), sign)
        return common(found, self.accepted(other, union(right, ())))

    def _through_product(self, node: ir.Node, wanted: Integers) -> Integers:
        for one, other in (node.inputs, reversed(node.inputs)):
            factor = scalar(other)
            if factor:
                return self.accepted(one, _divided(wanted, factor))
        return ALL

    def _through_limits(self, node: ir.Node, wanted: Integers) -> Integers:
        """Through a Min, a Max or a Clip whose limits are constants."""
        first, *rest = node.inputs
        if node.op_type == "Clip":
            limits = [("Max", input_at(node, 1)), ("Min", input_at(node, 2))]
        else:
            if rest and constant(first) is not None:
                first, rest = rest[0], [first, *rest[1:]]
            limits = [(node.op_type, limit) for limit in rest]
        for op, limit in reversed(limits):
            if limit is None:
                continue
            number = scalar(limit)
            if number is None:
                return ALL
            kept, cut = ((number, inf), (-inf, number - 1))
            if op == "Min":
                kept, cut = ((-inf, number), (number + 1, inf))
            inside = common(wanted, (kept,))
            at_limit = bool(common(wanted, ((number, number),)))
            wanted = union(inside, (cut,) if at_limit else ())
        return self.accepted(first, wanted)

    def _through_where(self, node: ir.Node, wanted: Integers) -> Integers:
        condition, then, otherwise = node.inputs
        return union(
            common(self._making(condition, True), self.accepted(then, wanted)),
            common(self._making(condition, False), self.accepted(otherwise, wanted)),
        )

    def _making(self, condition: ir.Value | None, outcome: bool) -> Integers:
        """The integers that may make a condition on the source so; `ALL` if it is on others."""
        node = condition.producer() if condition is not None else None
        if node is None or node.domain != "":
            return ALL
        op = node.op_type
        if op in ("Identity", "Unsqueeze", "Squeeze", "Expand"):
            return self._making(node.inputs[0], outcome)
        if op == "Not":
            return self._making(node.inputs[0], not outcome)
        if op in ("And", "Or"):
            join = common if (op == "And") == outcome else union
            return join(*(self._making(part, outcome) for part in node.inputs))
        if op == "Cast" and _is_integer(node.inputs[0]):
            zero: Integers = ((0, 0),)
            return self.accepted(node.inputs[0], others(zero) if outcome else zero)
        if op in _COMPARISONS:
            value, number = node.inputs[0], scalar(node.inputs[1])
            if number is None:
                value, number, op = node.inputs[1], scalar(node.inputs[0]), _MIRRORED[op]
            if number is not None and _is_integer(value):
                those = _COMPARISONS[op](number)
                return self.accepted(value, those if outcome else others(those))
        return ALL


def _ends(value: ir.Value) -> tuple[float, float]:
    """The least and the greatest element of a value, infinite where they are not known."""
    array = constant(value)
    if array is not None and array.size:
        return int(array.min()), int(array.max())
    try:
        reader = IndexReader()
        return bounds(read(value, [f"axis {axis}" for axis, _ in enumerate(reader.dims(value))]))
    except NotClosed:
        return -inf, inf


def _scaled(integers: Integers, sign: int) -> Integers:
    return integers if sign > 0 else tuple((-high, -low) for low, high in reversed(integers))


def _divided(integers: Integers, factor: float) -> Integers:
    """The integers whose product with ``factor`` is one of these."""
    size = abs(factor)
    found = []
    for low, high in _scaled(integers, 1 if factor > 0 else -1):
        least = low if low == -inf else -(-low // size)
        most = high if high == inf else high // size
        found.append((least, most))
    return union(tuple(found), ())


def _multiplied(integers: Integers, divisor: float) -> Integers:
    """The integers whose quotient by a positive ``divisor``, rounded to zero, is one of these."""
    rest = divisor - 1
    return union(
        tuple(
            (low * divisor - (rest if low <= 0 else 0), high * divisor + (rest if high >= 0 else 0))
            for low, high in integers
        ),
        (),
    )


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_integer()
