"""Reads a constant table as a formula of its index: one number, a line, a triangle, a band."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.index.expression import BOOL, Expression, Linear, atom, table
from omnigraph.passes.analysis.index.simplification import (
    choice,
    constant,
    element,
    every,
    non_negative,
)

#: Tables with more elements are weights, which have no formula.
_MOST_ELEMENTS = 1 << 24


def closed_form(value: ir.Value, index: tuple[Linear, ...]) -> Expression:
    """An element of a constant: a formula where the whole table follows one, else a look-up.

    A table follows a formula if all of its elements are one number, if it is integers
    ``a + b*index`` along one axis, or if it is a matrix of two numbers (after axes of size 1), one
    of them on a band of diagonals, as causal masks and windows are.
    """
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    dtype = tensor.dtype
    if tensor.size == 0 or tensor.size > _MOST_ELEMENTS:
        return element(value, index)
    if tensor.size > 1 and all(not one.terms for one in index):
        return constant(table(value)[tuple(one.constant for one in index)].item(), dtype)
    array = table(value)
    if tensor.size == 1:
        return constant(array.item(), dtype)
    wide = [axis for axis, size in enumerate(array.shape) if size > 1]
    if len(wide) == 1 and dtype.is_integer():
        line = array.reshape(-1).astype(np.int64)
        step = int(line[1] - line[0])
        if np.array_equal(line, line[0] + step * np.arange(line.size)):
            return index[wide[0]] * step + int(line[0])
    first = array.reshape(-1)[0]
    if bool((array == first).all()):
        return constant(first.item(), dtype)
    if len(wide) == 2 and (found := _band(array, dtype, [index[axis] for axis in wide])):
        return found
    return element(value, index)


def _band(array: np.ndarray, dtype: ir.DataType, at: list[Linear]) -> Expression | None:
    """The formula of a matrix of two numbers, one of them on neighbouring diagonals."""
    matrix = array.reshape([size for size in array.shape if size > 1])
    rows, columns = matrix.shape
    # The number on each diagonal j - i, as the first row and column have it.
    diagonals = np.concatenate([matrix[:0:-1, 0], matrix[0]])
    numbers = np.unique(diagonals)
    if len(numbers) != 2:
        return None
    for row in range(1, rows):
        if not np.array_equal(matrix[row], diagonals[rows - 1 - row :][:columns]):
            return None
    spots = [np.nonzero(diagonals == number)[0] for number in numbers]
    banded = [side for side in (1, 0) if np.ptp(spots[side]) + 1 == len(spots[side])]
    if not banded:
        return None
    where, on, off = spots[banded[0]], numbers[banded[0]], numbers[1 - banded[0]]
    sides = []
    distance = at[1] - at[0]
    if where[0] > 0:
        sides.append(non_negative(distance - int(where[0] - rows + 1)))
    if where[-1] < len(diagonals) - 1:
        sides.append(non_negative(-distance + int(where[-1] - rows + 1)))
    inside = every(sides)
    if dtype == BOOL:
        return choice(inside, constant(bool(on), dtype), constant(bool(off), dtype))
    result = choice(inside, constant(on.item(), dtype), constant(off.item(), dtype))
    return atom(result) if dtype.is_integer() else result
