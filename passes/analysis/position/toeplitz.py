"""A function of ``key - query`` position: one row of numbers, and the matrix that it spans."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import HEAD, difference
from omnigraph.passes.analysis.index import (
    Emitter,
    Expression,
    Length,
    Linear,
    compute,
    coordinate,
    inside,
    lengths,
    settled,
    substitute,
)
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import made_by, rank

#: The coordinate of distances, counted from where a query stands among the keys.
DISTANCE = "d"
#: The largest distance that is tried as the one beyond which a function does not change.
_FARTHEST = 1 << 14
_INT32 = int(ir.DataType.INT32)


@dataclass(frozen=True)
class Toeplitz:
    """A matrix [H, T, S] whose element is ``row(j - i - offset)``.

    Args:
        row: an element by head ``h`` and distance ``d``.
        offset: the position of query 0 among the keys: the past.
        reach: the distance, either way, beyond which the row does not change; None if it does.
        closed: whether the row depends on no length, and so is the same in every call.
    """

    row: Expression
    offset: Linear
    reach: int | None
    closed: bool

    @classmethod
    def of(cls, expression: Expression) -> Toeplitz | None:
        """The Toeplitz matrix of an expression of ``i`` and ``j``; None if it is no such matrix."""
        found = difference(expression, DISTANCE)
        if found is None:
            return None
        here = coordinate(DISTANCE, signed=True)
        offset = Linear(0)
        for one in inside(found):
            if isinstance(one, Linear) and abs(sign := one.of(here.terms[0][0])) == 1:
                sizes = [(t, -sign * f) for t, f in one.terms if isinstance(t, Length)]
                offset = Linear(0, tuple(sizes))
                break
        row = substitute(found, {DISTANCE: here + offset})
        return cls(row, offset, _reach(row), closed=not lengths(row))

    def table(self, heads: int, least: int, most: int) -> np.ndarray:
        """The numbers [H, most - least + 1] of the row, from distance ``least`` to ``most``."""
        places = {HEAD: np.arange(heads)[:, None], DISTANCE: np.arange(least, most + 1)[None]}
        whole = (heads, most - least + 1)
        return np.ascontiguousarray(np.broadcast_to(compute(self.row, places), whole))

    def looked_up(self, heads: int, before: Inserter, graph: ir.Graph, sizes: Sizes) -> ir.Value:
        """The row [T + S, H] of this call, from a table of all distances up to the reach."""
        assert self.reach is not None
        table = np.ascontiguousarray(self.table(heads, -self.reach, self.reach).T)
        low, high = before.integer(-self.reach), before.integer(self.reach)
        place = before.op("Clip", self._distances(before, graph, sizes), low, high)
        return before.op("Gather", before.constant(table), before.op("Add", place, high), axis=0)

    def computed(self, heads: int, before: Inserter, graph: ir.Graph, sizes: Sizes) -> ir.Value:
        """The row [T + S, H] of this call, computed."""
        place = before.op("Unsqueeze", self._distances(before, graph, sizes), before.integers(1))
        known = {HEAD: np.arange(heads)[None]}
        return Emitter(before, graph, {DISTANCE: place}, known=known).emit(self.row)

    def _distances(self, before: Inserter, graph: ir.Graph, sizes: Sizes) -> ir.Value:
        """The distances [T + S] of the row, rising from key 0 less the query after the last one."""
        emitter = Emitter(before, graph, {})
        first = emitter.emit(-sizes.queries - self.offset)
        beyond = emitter.emit(sizes.keys - self.offset)
        return before.op("Range", first, beyond, before.integer(1))


@dataclass(frozen=True)
class Sizes:
    """The numbers of queries T and keys S of a matrix."""

    queries: Linear
    keys: Linear


def spanned(row: ir.Value, before: Inserter, graph: ir.Graph, sizes: Sizes) -> ir.Value:
    """The matrix [H, T, S] of a row [T + S, H]: element ``(h, i, j)`` is ``row[j - i + T, h]``."""
    op, integers, emitter = before.op, before.integers, Emitter(before, graph, {})
    queries, keys = emitter.emit(sizes.queries), emitter.emit(sizes.keys)
    # Half the memory of int64; the last query reads from 1 on, the first from T on.
    down = op("Cast", op("Range", queries, before.integer(0), before.integer(-1)), to=_INT32)
    along = op("Cast", op("Range", before.integer(0), keys, before.integer(1)), to=_INT32)
    place = op("Add", op("Unsqueeze", down, integers(1)), op("Unsqueeze", along, integers(0)))
    return op("Transpose", op("Gather", row, place, axis=0), perm=[2, 0, 1])


def is_spanned(value: ir.Value | None) -> bool:
    """Whether a value contains a matrix that a Gather reads from a row of this call."""
    node = made_by(value, "Add", "Where", "Unsqueeze", "Squeeze", "Transpose", "Gather")
    if node is None:
        return False
    if node.op_type == "Gather":
        table = node.inputs[0]
        given = table is not None and ir.convenience.get_const_tensor(table) is not None
        return rank(table) == 2 and not given
    return any(is_spanned(given) for given in node.inputs)


def _reach(row: Expression) -> int | None:
    """The least distance, either way, beyond which a row does not change."""

    def holds(far: int) -> bool:
        ends = ((float(far), inf), (-inf, float(-far)))
        return all(settled(row, DISTANCE, end) for end in ends)

    if not holds(_FARTHEST):
        return None
    low, high = 0, _FARTHEST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
