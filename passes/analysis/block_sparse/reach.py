"""Proves which keys a mask can show to a query, from the expression of its predicate.

A predicate that is not understood counts as one that shows every key. So a reach may be wider than
the mask, and is never narrower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from omnigraph.passes.analysis.attention.mask import KEY, QUERY
from omnigraph.passes.analysis.index import (
    FALSE,
    All,
    Any,
    Apply,
    Expression,
    IsZero,
    Linear,
    NonNegative,
    coordinate,
    coordinates,
    substitute,
)


@dataclass(frozen=True)
class Band:
    """Keys in blocks of ``unit`` positions near the query's block.

    ``low`` and ``high`` bound the number of the key's block minus that of the query's; None is no
    bound. Positions count as for keys: the last query is at the last key.
    """

    low: int | None
    high: int | None
    unit: int = 1


@dataclass(frozen=True)
class Columns:
    """The keys of the first ``count`` blocks, to every query."""

    count: int
    unit: int


@dataclass(frozen=True)
class Rows:
    """Every key, to the queries of the first ``count`` blocks."""

    count: int
    unit: int


@dataclass(frozen=True)
class Drawn:
    """The keys of one block; ``block`` is an expression of the query's block."""

    block: Linear
    unit: int


Part: TypeAlias = Band | Columns | Rows | Drawn
#: The keys of all parts together; no keys without parts.
Reach: TypeAlias = tuple[Part, ...]


def reach(predicate: Expression, past: Linear) -> Reach | None:
    """The keys ``j`` for which a predicate can hold at a query ``i``; None for every key.

    Args:
        past: the number of keys minus the number of queries.
    """
    unsized = {name: coordinate(name) for name in (QUERY, KEY)}
    return _reach(substitute(predicate, unsized), past)


def _reach(predicate: Expression, past: Linear) -> Reach | None:
    if predicate == FALSE:
        return ()
    if isinstance(predicate, All):
        return _both(_reach(part, past) for part in predicate.args)
    if isinstance(predicate, Any):
        return _either(_reach(part, past) for part in predicate.args)
    if isinstance(predicate, NonNegative):
        return _of_sum(predicate.sum, past)
    if isinstance(predicate, IsZero):
        drawn = None if past != Linear(0) else _drawn(predicate.sum)
        if drawn is not None:
            return (drawn,)
        return _both([_of_sum(predicate.sum, past), _of_sum(-predicate.sum, past)])
    return None


def _of_sum(found: Linear, past: Linear) -> Reach | None:
    """The keys where a sum is at least zero."""
    key, query = coordinate(KEY), coordinate(QUERY)
    shifted = found + past * found.of(key.terms[0][0])  # the key is now counted from the query's
    number = shifted.constant
    if shifted - number == query - key:
        return (Band(None, number),)
    if shifted - number == key - query:
        return (Band(-number, None),)
    units = {unit for term, _ in found.terms if (unit := _unit(term)) is not None}
    if len(units) != 1 or past != Linear(0):
        return None
    (unit,) = units
    key, query = (_block(name, unit) for name in (KEY, QUERY))
    rest = found - number
    if rest == query - key:
        return (Band(None, number, unit),)
    if rest == key - query:
        return (Band(-number, None, unit),)
    if rest == -key:
        return (Columns(number + 1, unit),)
    if rest == -query:
        return (Rows(number + 1, unit),)
    return None


def _drawn(found: Linear) -> Drawn | None:
    """``the key's block = f(the query's block)``, for any f."""
    blocks = [(t, f) for t, f in found.terms if KEY in coordinates(t)]
    if len(blocks) != 1 or abs(blocks[0][1]) != 1:
        return None
    ((term, factor),) = blocks
    unit = _unit(term)
    if unit is None or term != _block(KEY, unit).terms[0][0]:
        return None
    block = (found - Linear(0, ((term, factor),))) * -factor
    if block == _block(QUERY, unit) or not _by_block(block, unit):
        return None
    return Drawn(block, unit)


def _by_block(expression: Expression, unit: int) -> bool:
    """Whether an expression is the same for all the queries of a block, of one head and batch."""
    here = coordinates(expression)
    if expression == _block(QUERY, unit).terms[0][0] or not here:
        return True
    if here != {QUERY} or not expression.parts:
        return False
    return all(_by_block(part, unit) for part in expression.parts)


def _block(name: str, unit: int) -> Linear:
    term = Apply("Div", (coordinate(name), Linear(unit)), Linear(0).type)
    return Linear(0, ((term, 1),))


def _unit(term: Expression) -> int | None:
    """The size of the blocks that a position is counted in."""
    if not isinstance(term, Apply) or term.op != "Div":
        return None
    position, divisor = term.args
    if position not in (coordinate(KEY), coordinate(QUERY)):
        return None
    return divisor.constant if isinstance(divisor, Linear) and not divisor.terms else None


# Unions and intersections -------------------------------------------------------------------------


def _either(reaches: Iterable[Reach | None]) -> Reach | None:
    parts: list[Part] = []
    for one in reaches:
        if one is None:
            return None
        parts += one
    return tuple(dict.fromkeys(parts))


def _both(reaches: Iterable[Reach | None]) -> Reach | None:
    result: Reach | None = None
    for one in reaches:
        if result is None or one is None:
            result = one if result is None else result
        else:
            result = tuple(dict.fromkeys(_meet(a, b) for a in result for b in one))
    return result


def _meet(one: Part, other: Part) -> Part:
    """A part with all keys that are in both; it may have more."""
    if isinstance(one, Band) and isinstance(other, Band):
        fine, coarse = sorted((one, other), key=lambda band: band.unit)
        if coarse.unit % fine.unit:
            return coarse
        fine = in_blocks(fine, coarse.unit)
        lows = [low for low in (fine.low, coarse.low) if low is not None]
        highs = [high for high in (fine.high, coarse.high) if high is not None]
        return Band(max(lows, default=None), min(highs, default=None), coarse.unit)
    if isinstance(other, Rows):
        one, other = other, one
    if isinstance(one, Rows) and isinstance(other, Band) and one.unit % other.unit == 0:
        high = in_blocks(other, one.unit).high
        return one if high is None else Columns(one.count + max(high, 0), one.unit)
    if isinstance(one, Band) and (one.low is None or one.high is None):
        return other
    return other if isinstance(one, Rows) else one


def in_blocks(band: Band, unit: int) -> Band:
    """A band in blocks of ``unit``, a multiple of its own unit; it may get wider."""
    if band.unit == unit:
        return band
    low = None if band.low is None else band.low * band.unit // unit
    high = None if band.high is None else -(-band.high * band.unit // unit)
    return replace(band, low=low, high=high, unit=unit)
