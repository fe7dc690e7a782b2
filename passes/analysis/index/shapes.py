"""Sizes of axes as expressions, and the index before a Reshape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

from omnigraph.passes.analysis.index.expression import Length, Linear, atom, total
from omnigraph.passes.analysis.index.simplification import apply

Index: TypeAlias = tuple[Linear, ...]


def dimension(dim: int | ir.SymbolicDim) -> Linear | None:
    """A dimension of a shape as an expression: ``past + sequence`` is the sum of two lengths."""
    if isinstance(dim, int):
        return Linear(dim)
    if dim.value is None:
        return None
    sums = []
    for term in dim.value.split("+"):
        match = re.fullmatch(
            r"(?:(\d+)\s*\*\s*)?([A-Za-z_]\w*)(?:\s*\*\s*(\d+))?|(\d+)", term.strip()
        )
        if match is None:
            return Linear(0, ((Length(dim.value), 1),))
        before, name, after, number = match.groups()
        if number is not None:
            sums.append((Linear(int(number)), 1))
        else:
            sums.append((Linear(0, ((Length(name), 1),)), int(before or 1) * int(after or 1)))
    return total(sums)


def regrouped(
    inner: Sequence[Linear | None], outer: Sequence[Linear | None], index: Index
) -> Index | None:
    """The index before a Reshape; None where the sizes do not prove it.

    Axes are matched in groups of equal size. In a group, all axes but the first need known sizes.

    Args:
        inner, outer: the sizes before and after.
        index: the index after.
    """
    if any(dim is None for dim in inner) and len(inner) == 1 and len(outer) == 1:
        return index
    found: list[Linear] = []
    i = o = 0
    one = Linear(1)
    while i < len(inner) or o < len(outer):
        if i < len(inner) and inner[i] == one:
            found.append(Linear(0))
            i += 1
            continue
        if o < len(outer) and outer[o] == one:
            o += 1
            continue
        group = _group(inner[i:], outer[o:])
        if group is None:
            return None
        flat = _flat(index[o : o + group[1]], outer[o : o + group[1]])
        local = _unflat(flat, inner[i : i + group[0]]) if flat is not None else None
        if local is None:
            return None
        found += local
        i, o = i + group[0], o + group[1]
    return tuple(found)


def _group(
    inner: Sequence[Linear | None], outer: Sequence[Linear | None]
) -> tuple[int, int] | None:
    """The fewest axes on each side whose products are equal."""
    for count in range(1, len(inner) + 1):
        for other in range(1, len(outer) + 1):
            one, two = product(inner[:count]), product(outer[:other])
            if one is not None and one == two:
                return count, other
    return None


def product(dims: Sequence[Linear | None]) -> Linear | None:
    """The number of elements; None where it is no multiple of one sum of lengths."""
    result = Linear(1)
    for dim in dims:
        if dim is None:
            return None
        if dim.terms and result.terms:
            return None
        result = dim * result.constant if dim.terms else result * dim.constant
    return result


def _flat(index: Index, dims: Sequence[Linear | None]) -> Linear | None:
    result = index[0]
    for at, dim in zip(index[1:], dims[1:], strict=True):
        if dim is None or dim.terms:
            return None
        result = result * dim.constant + at
    return result


def _unflat(flat: Linear, dims: Sequence[Linear | None]) -> list[Linear] | None:
    found: list[Linear] = []
    for dim in reversed(dims[1:]):
        if dim is None or dim.terms:
            return None
        found.append(atom(apply("Mod", [flat, dim], ir.DataType.INT64)))
        flat = atom(apply("Div", [flat, dim], ir.DataType.INT64))
    return [flat, *reversed(found)]


def broadcast(shapes: list[tuple[Linear | None, ...]]) -> list[Linear | None]:
    """The sizes that shapes broadcast to; None where two symbolic sizes meet."""
    found: list[Linear | None] = []
    one = Linear(1)
    for axis in range(1, max(map(len, shapes)) + 1):
        dims = {shape[-axis] for shape in shapes if len(shape) >= axis} - {one}
        known = {dim for dim in dims if dim is not None}
        fixed = {dim for dim in known if not dim.terms}
        if not dims:
            found.append(one)
        elif fixed:
            found.append(next(iter(fixed)))
        else:
            found.append(next(iter(known)) if len(known) == 1 and None not in dims else None)
    return found[::-1]
