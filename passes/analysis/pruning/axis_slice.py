"""A slice of one axis: the elements that it keeps, and where a Reshape moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.passes.matching import axis_size
from omnigraph.passes.site_pass import Miss

Dim = int | ir.SymbolicDim


@dataclass(frozen=True)
class AxisSlice:
    """Some elements of one axis.

    Args:
        axis: counted from the front.
        kept: the indices of the elements, in order.
    """

    axis: int
    kept: tuple[int, ...]


def sliced_shape(value: ir.Value, axis_slice: AxisSlice) -> ir.Shape:
    """The shape of a value after it is sliced."""
    assert value.shape is not None
    kept = len(axis_slice.kept)
    return ir.Shape([kept if a == axis_slice.axis else d for a, d in enumerate(value.shape)])


def rank_of(value: ir.Value | None) -> int:
    """The number of axes of a value.

    Raises:
        Miss: it is not known.
    """
    if value is None or value.shape is None:
        raise Miss("a value has no known rank", at=value.producer() if value is not None else None)
    return len(value.shape)


def size_of(value: ir.Value | None, axis: int) -> int:
    """The size of an axis.

    Raises:
        Miss: it is not a known number.
    """
    size = axis_size(value, axis)
    if size is None:
        at = value.producer() if value is not None else None
        raise Miss("the number of heads is not known", at=at)
    return size


def axis_through_reshape(
    here: ir.Value, there: ir.Value, axis: int, kept: Sequence[int]
) -> tuple[int, tuple[int, ...]] | None:
    """Follow elements of one axis through a Reshape: the axis on the other side, and the elements.

    Args:
        here: one side of a Reshape, input or output.
        there: the other side.
        axis: an axis of ``here``, from the front.
        kept: elements of that axis.

    Returns:
        The axis of ``there`` and its elements; None where shapes are unknown, or where the
        elements are not whole slices along one axis.
    """
    if here.shape is None or there.shape is None:
        return None
    one, other = list(here.shape), list(there.shape)
    for backwards in (False, True):
        found = _group(one, other, axis, backwards)
        if found is not None:
            return _along_one_axis(one, other, axis, kept, *found)
    return None


def _group(
    one: list[Dim], other: list[Dim], axis: int, backwards: bool
) -> tuple[range, range] | None:
    """The smallest group of axes around ``axis`` that has as many elements on both sides.

    All of their sizes are numbers.
    """
    if backwards:
        found = _group(one[::-1], other[::-1], len(one) - 1 - axis, False)
        if found is None:
            return None
        (a, b), (c, d) = ((r.start, r.stop) for r in found)
        return range(len(one) - b, len(one) - a), range(len(other) - d, len(other) - c)
    i = j = 0
    while i < len(one) and j < len(other):
        a, b = i + 1, j + 1
        if _same_symbol(one[i], other[j]):
            if i == axis:
                return None
            i, j = a, b
            continue
        if not isinstance(one[i], int) or not isinstance(other[j], int):
            return None
        while (left := _product(one[i:a])) != (right := _product(other[j:b])):
            if left is None or right is None:
                return None
            if left < right and a < len(one):
                a += 1
            elif right < left and b < len(other):
                b += 1
            else:
                return None
        if i <= axis < a:
            return range(i, a), range(j, b)
        i, j = a, b
    return None


def _same_symbol(one: Dim, other: Dim) -> bool:
    return not isinstance(one, int) and one == other and one.value is not None


def _product(dims: list[Dim]) -> int | None:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(numbers) if len(numbers) == len(dims) else None


def _along_one_axis(
    one: list[Dim], other: list[Dim], axis: int, kept: Sequence[int], here: range, there: range
) -> tuple[int, tuple[int, ...]] | None:
    mask = np.zeros([int(str(one[a])) for a in here], np.bool_)  # which are all numbers
    np.moveaxis(mask, axis - here.start, 0)[list(kept)] = True
    mask = mask.reshape([int(str(other[a])) for a in there])
    for place, found in enumerate(there):
        others = tuple(a for a in range(mask.ndim) if a != place)
        some, every = mask.any(axis=others), mask.all(axis=others)
        if mask.shape[place] > 1 and (some == every).all():
            return found, tuple(np.flatnonzero(some).tolist())
    return None
