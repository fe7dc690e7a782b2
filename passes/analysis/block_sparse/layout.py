"""Blocks of queries, and the keys that each block sees, as values of a Graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import KEY, QUERY
from omnigraph.passes.analysis.block_sparse.mask import Places
from omnigraph.passes.analysis.block_sparse.reach import (
    Band,
    Columns,
    Drawn,
    Reach,
    Rows,
    in_blocks,
)
from omnigraph.passes.analysis.index import Emitter, Linear, coordinate, substitute
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.site_pass import Miss

_BLOCK, _ROW, _START, _COLUMN = "n", "r", "start", "c"


@dataclass(frozen=True)
class Window:
    """Each query sees keys from ``low`` to ``high`` positions after its own."""

    low: int
    high: int


@dataclass(frozen=True)
class BlockPattern:
    """Each block of ``unit`` queries sees some blocks of ``unit`` keys.

    Args:
        low, high: it sees the blocks from ``low`` to ``high`` after its own.
        columns: it sees the first so many blocks.
        rows: the first so many blocks of queries see every key.
        drawn: it sees one block for each of these, an expression of the query's block.
    """

    unit: int
    low: int
    high: int
    columns: int
    rows: int
    drawn: tuple[Linear, ...]


def pattern_of(reach: Reach | None) -> Window | BlockPattern:
    """The pattern of a reach.

    Raises:
        Miss: the number of keys that a query sees grows with the number of keys.
    """
    if not reach:
        raise Miss("the mask may show every key" if reach is None else "the mask shows no key")
    bands = [part for part in reach if isinstance(part, Band)]
    if any(band.low is None for band in bands):
        raise Miss("the mask may show every key before the query")
    if any(band.high is None for band in bands):
        raise Miss("the mask may show every key after the query")
    unit = max(part.unit for part in reach)
    if unit == 1 and len(bands) == len(reach):
        low, high = _hull(bands)
        return Window(min(low, 0), max(high, 0))  # with itself, so that there always is a key
    if any(unit % part.unit for part in reach):
        raise Miss(f"the mask has blocks of several sizes, {sorted({p.unit for p in reach})}")
    low, high = _hull([in_blocks(band, unit) for band in bands]) if bands else (1, 0)
    counts = {
        kind: max((-(-p.count * p.unit // unit) for p in reach if isinstance(p, kind)), default=0)
        for kind in (Columns, Rows)
    }
    drawn = tuple(part.block for part in reach if isinstance(part, Drawn))
    if any(part.unit != unit for part in reach if isinstance(part, Drawn)):
        raise Miss("the mask draws blocks of several sizes")
    return BlockPattern(unit, low, high, counts[Columns], counts[Rows], drawn)


def _hull(bands: list[Band]) -> tuple[int, int]:
    lows = [band.low for band in bands if band.low is not None]
    return min(lows), max(band.high for band in bands if band.high is not None)


@dataclass(frozen=True)
class Blocks:
    """N blocks of b queries with K keys each; all values int64 but ``valid``.

    Args:
        rows: [N, b] indices of queries, each below T.
        columns: [N, K] indices of keys, each below S.
        places, positions: the coordinates of the blocks; query and key as expressions of them.
        valid: bool, broadcasts to the mask: whether a key exists, and is the first of its repeats.
        count, size, width: N, b and K, each [1].
    """

    rows: ir.Value
    columns: ir.Value
    places: Places
    positions: dict[str, Linear]
    valid: ir.Value
    count: ir.Value
    size: ir.Value
    width: ir.Value


class Layout:
    """Makes the blocks of one Attention, for T queries that are the last of S positions."""

    def __init__(self, insert: Inserter, query: ir.Value, key: ir.Value) -> None:
        self._insert, self._query = insert, query
        self.queries, self.keys = insert.length(query, 2), insert.length(key, 2)
        self._zero, self._one = insert.integer(0), insert.integer(1)

    def window(self, window: Window, block: int, past: Linear) -> Blocks:
        """Blocks of at most ``block`` queries, each with contiguous keys around it.

        A window wider than the keys is narrowed, so that short sequences cost no more.
        """
        op, integer = self._insert.op, self._insert.integer
        size = op("Min", self.queries, integer(block))
        count = self._over(self.queries, size)
        before = op("Sub", self.keys, self.queries) if past != Linear(0) else None
        low, high = integer(window.low), integer(window.high)
        if window.low < 0:
            low = op("Max", low, op("Sub", self._one, self.keys))
        if window.high > 0:
            high = op("Min", high, op("Sub", self.queries, self._one))
        width = op("Add", op("Sub", high, low), size)
        start = op("Mul", self._range(count), size)  # [N]
        offset = op("Add", self._range(width), low)  # [K], of a key from the block's first query
        first = start if before is None else op("Add", start, before)
        unclipped = op("Add", self._axes(first, 1), offset)  # [N, K]
        columns = op("Clip", unclipped, self._zero, op("Sub", self.keys, self._one))
        within = self._range(size)  # [b]
        given = {
            _START: self._axes(start, 1, 2),
            _ROW: self._axes(within, 1),
            _COLUMN: offset,
        }
        begin, moved = coordinate(_START), coordinate(_COLUMN, signed=True)
        return Blocks(
            self._rows(start, within),
            columns,
            Places(self._insert, self._query, 3, given),
            {QUERY: begin + coordinate(_ROW), KEY: begin + past + moved},
            self._axes(op("Equal", columns, unclipped), 1),
            *(self._axes(value, 0) for value in (count, size, width)),
        )

    def blocks(self, pattern: BlockPattern, graph: ir.Graph) -> Blocks:
        """Blocks of ``pattern.unit`` queries; S = T."""
        op, integer = self._insert.op, self._insert.integer
        unit = integer(pattern.unit)
        count = self._over(self.queries, unit)
        own = self._range(count)  # [N]
        looked = [op("Add", own, integer(by)) for by in range(pattern.low, pattern.high + 1)]
        looked += [
            op("Add", op("Mul", own, self._zero), integer(block))
            for block in range(pattern.columns)
        ]
        for block in pattern.drawn:
            by_block = coordinate(_BLOCK) * pattern.unit
            emitter = Emitter(self._insert, graph, {_BLOCK: own})
            looked.append(emitter.emit(substitute(block, {QUERY: by_block})))
        unclipped = op("Concat", *(self._axes(one, 1) for one in looked), axis=1)  # [N, M]
        there = op("Clip", unclipped, self._zero, op("Sub", count, self._one))
        valid = op("Equal", there, unclipped)
        if pattern.columns or pattern.drawn:
            valid = op("And", valid, op("Not", self._repeated(unclipped, len(looked))))
        within = self._range(unit)  # [u]
        wide = op("Add", op("Mul", self._axes(there, 2), unit), within)  # [N, M, u]
        found = op("Less", wide, self.keys)
        last = op("Sub", self.keys, self._one)
        columns = op("Reshape", op("Min", wide, last), self._insert.integers(0, -1))
        given = {
            _BLOCK: self._axes(own, 1, 2, 3),
            _ROW: self._axes(within, 1, 2),
            _START: self._axes(there, 1, 3),
            _COLUMN: within,
        }
        row, column = (coordinate(name, pattern.unit) for name in (_ROW, _COLUMN))
        return Blocks(
            self._rows(op("Mul", own, unit), within),
            columns,
            Places(self._insert, self._query, 4, given),
            {
                QUERY: coordinate(_BLOCK) * pattern.unit + row,
                KEY: coordinate(_START) * pattern.unit + column,
            },
            self._axes(op("And", self._axes(valid, 2), found), 1),
            self._axes(count, 0),
            self._insert.integers(pattern.unit),
            self._insert.integers(len(looked) * pattern.unit),
        )

    def top(self, rows: int) -> tuple[ir.Value, Places, dict[str, Linear]]:
        """The first queries [rows], each below T; their coordinates, and those of all keys."""
        index = self._range(self._insert.integer(rows))
        given = {_ROW: self._axes(index, 1), _COLUMN: self._range(self.keys)}
        last = self._insert.op("Sub", self.queries, self._one)
        positions = {QUERY: coordinate(_ROW), KEY: coordinate(_COLUMN)}
        return (
            self._insert.op("Min", index, last),
            Places(self._insert, self._query, 2, given),
            positions,
        )

    def _rows(self, start: ir.Value, within: ir.Value) -> ir.Value:
        """The indices [N, b]; those after the last query are the last query again."""
        rows = self._insert.op("Add", self._axes(start, 1), within)
        return self._insert.op("Min", rows, self._insert.op("Sub", self.queries, self._one))

    def _repeated(self, blocks: ir.Value, width: int) -> ir.Value:
        """[N, M] bool: whether a block repeats an earlier one."""
        same = self._insert.op("Equal", self._axes(blocks, 2), self._axes(blocks, 1))
        earlier = self._insert.constant(np.tri(width, k=-1, dtype=np.bool_))
        both = self._insert.op("And", same, earlier)
        counted = self._insert.op("Cast", both, to=int(ir.DataType.INT32))
        most = self._insert.op("ReduceMax", counted, self._insert.integers(2), keepdims=0)
        return self._insert.op("Cast", most, to=int(ir.DataType.BOOL))

    def _over(self, length: ir.Value, size: ir.Value) -> ir.Value:
        """How many blocks: the quotient, rounded up."""
        more = self._insert.op("Add", length, self._insert.op("Sub", size, self._one))
        return self._insert.op("Div", more, size)

    def _range(self, count: ir.Value) -> ir.Value:
        return self._insert.op("Range", self._zero, count, self._one)

    def _axes(self, value: ir.Value, *axes: int) -> ir.Value:
        return self._insert.op("Unsqueeze", value, self._insert.integers(*axes))
