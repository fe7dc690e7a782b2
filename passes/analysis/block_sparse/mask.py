"""Computes a mask from its expression, for the few keys that each block of queries sees.

The T x S elements of the mask are never made. A position is the sum of a block's start and a place
in the block, so a part that depends on ``j - i`` alone is computed for one block only.
"""

from __future__ import annotations

import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import BATCH, HEAD
from omnigraph.passes.analysis.index import (
    Choice,
    Coordinate,
    Element,
    Emitter,
    Expression,
    Length,
    Linear,
    Number,
    bounds,
    coordinates,
    inside,
    substitute,
)
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.site_pass import Miss


class Places(dict[str, ir.Value]):
    """The values of coordinates; those of batch and heads are made at the first use.

    Args:
        axes: the number of axes of all coordinates of positions together, after that of heads.
    """

    def __init__(
        self, insert: Inserter, query: ir.Value, axes: int, given: dict[str, ir.Value]
    ) -> None:
        super().__init__(given)
        self._insert, self._query, self.axes = insert, query, axes

    def __missing__(self, name: str) -> ir.Value:
        axis = (BATCH, HEAD).index(name)
        size = self._insert.length(self._query, axis)
        counted = self._insert.op("Range", self._insert.integer(0), size, self._insert.integer(1))
        behind = range(1, self.axes + (2 if name == BATCH else 1))
        self[name] = self._insert.op("Unsqueeze", counted, self._insert.integers(*behind))
        return self[name]


def check(expression: Expression, graph: ir.Graph) -> None:
    """Check that a mask can be computed in blocks.

    Raises:
        Miss: it reads data with an element for each query and key, or a length of no input.
    """
    named = {
        dim.value for value in graph.inputs for dim in value.shape or () if not isinstance(dim, int)
    }
    for part in inside(expression):
        if isinstance(part, Length) and part.name not in named:
            raise Miss(f"no input has the length {part.name!r}, of which the mask is made")
        if not isinstance(part, Element):
            continue
        moving = [i for i in part.index if coordinates(i) - {BATCH, HEAD}]
        if len(moving) > 1:
            raise Miss(
                f"the mask reads {part.value.name!r}, which has an element for each query and key",
                at=part.value.producer(),
            )
        for one in part.index:
            if one not in moving and one.terms and not isinstance(_whole(one), Coordinate):
                raise Miss(f"the mask reads {part.value.name!r} by head in a way not followed")


def _whole(index: Linear) -> Expression | None:
    """The coordinate, where an index is one and nothing else."""
    if index.constant or len(index.terms) != 1 or index.terms[0][1] != 1:
        return None
    return index.terms[0][0]


def block_mask(
    insert: Inserter,
    graph: ir.Graph,
    expression: Expression,
    places: Places,
    positions: dict[str, Linear],
    valid: ir.Value | None,
) -> ir.Value:
    """The mask [B or 1, H or 1, ..] at some positions.

    Args:
        places: the values of the coordinates.
        positions: query and key as expressions of the coordinates.
        valid: whether a key exists; others are hidden. None if all do.
    """
    emitter = Emitter(insert, graph, places, lambda one: _read(insert, emitter, places.axes, one))
    there = substitute(expression, positions)
    if valid is None:
        return emitter.emit(there)
    if there.type == ir.DataType.BOOL:
        return insert.op("And", emitter.emit(there), valid)
    if isinstance(there, Choice) and isinstance(there.otherwise, Number):
        seen = insert.op("And", emitter.emit(there.condition), valid)
        return insert.op("Where", seen, emitter.emit(there.then), emitter.emit(there.otherwise))
    made = emitter.emit(there)
    return insert.op("Where", valid, made, insert.number(float("-inf"), made))


def _read(insert: Inserter, emitter: Emitter, axes: int, expression: Element) -> ir.Value:
    """Elements [B or 1, H or 1, ..] of data or of a table, by one index that varies with positions.

    Queries and keys that do not exist may have an index outside; any element is read for them.
    """
    value, kept, moving = expression.value, list[str](), None
    axis = 0
    for index in expression.index:
        whole = _whole(index)
        if isinstance(whole, Coordinate) and whole.name in (BATCH, HEAD):
            kept.append(whole.name)
            axis += 1
        elif not index.terms:
            value = insert.op("Gather", value, insert.integer(index.constant), axis=axis)
        else:
            moving = (axis, index)
            kept.append("")
            axis += 1
    if moving is None:
        if kept == [HEAD, BATCH]:
            value = insert.op("Transpose", value, perm=[1, 0])
        shape = list(range(len(kept), len(kept) + axes))
    else:
        place, index = moving
        at = emitter.emit(index)
        value = insert.op("Gather", value, _inside(insert, at, index, value, place), axis=place)
        wide = len(at.shape or ())
        middle = list(range(place, place + wide))
        order = [a for a in range(len(kept) - 1 + wide) if a not in middle]
        kept.remove("")
        if kept == [HEAD, BATCH]:
            order.reverse()
        value = insert.op("Transpose", value, perm=[*order, *middle])
        shape = list(range(len(kept), len(kept) + axes - wide))
    if kept == [BATCH]:
        shape = [1, *(a + 1 for a in shape)]
    return insert.op("Unsqueeze", value, insert.integers(*shape)) if shape else value


def _inside(insert: Inserter, at: ir.Value, index: Linear, value: ir.Value, axis: int) -> ir.Value:
    low, high = bounds(index)
    size = value.shape[axis] if value.shape is not None else None
    if low >= 0 and isinstance(size, int) and high < size:
        return at
    last = insert.op("Sub", insert.length(value, axis), insert.integer(1))
    return insert.op("Clip", at, insert.integer(0), last)
