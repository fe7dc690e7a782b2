"""Whether the elements of an array are within a range, in one or two passes over its memory."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, isinf
from typing import Any, NamedTuple

import numpy as np

from omnigraph.program import TensorSpec

#: Whether every element of an array of the dtype of its spec is within the range.
Fits = Callable[[np.ndarray], bool]

_least, _greatest = np.minimum.reduce, np.maximum.reduce
#: The infinities of float16 as bits, and its greatest number.
_HALF_NEGATIVE_INFINITY, _HALF_INFINITY, _HALF_GREATEST = 0xFC00, 0x7C00, 65504


def range_of(spec: TensorSpec, narrowed: str | None = None) -> tuple[float, float]:
    """The least and the greatest value of a tensor, infinite where there is no bound.

    Args:
        narrowed: the dtype that the runtime computes the tensor's dtype in; None is its own.
    """
    low = -inf if spec.least is None else spec.least
    high = inf if spec.greatest is None else spec.greatest
    if narrowed is None:
        return low, high
    if np.dtype(narrowed).kind == "f":  # where infinity may come in, it may also come of rounding
        return low, high if high == inf else min(high, float(np.finfo(narrowed).max))
    own, narrow = np.iinfo(spec.dtype), np.iinfo(narrowed)
    return max(low, own.min, narrow.min), min(high, own.max, narrow.max)


def fits(spec: TensorSpec, narrowed: str | None = None) -> Fits | None:
    """The check of a tensor's range; None where every value of the dtype is within it.

    A NaN is within no range. An empty array fits.
    """
    dtype, (low, high) = np.dtype(spec.dtype), range_of(spec, narrowed)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = max(low, limits.min), min(high, limits.max)
        if (low, high) == (limits.min, limits.max):
            return None
        if low == 0:  # as unsigned integers, negative ones are the greatest
            unsigned = np.dtype(f"u{dtype.itemsize}")
            return lambda a: not a.size or bool(_greatest(a.view(unsigned), None) <= high)
    elif dtype.kind != "f" or (low, high) == (-inf, inf):
        return None
    elif low == -inf:
        if dtype == np.float16 and high >= _HALF_GREATEST:
            return _half_is_finite
        return lambda a: not a.size or bool(_greatest(a, None) <= high)
    return lambda a: not a.size or bool(_greatest(a, None) <= high and _least(a, None) >= low)


def _half_is_finite(array: np.ndarray) -> bool:
    """No NaN and no positive infinity; numpy compares floats of 16 bits one by one."""
    return not array.size or bool(
        _greatest(array.view(np.uint16), None) <= _HALF_NEGATIVE_INFINITY
        and _greatest(array.view(np.int16), None) < _HALF_INFINITY
    )


def outside(spec: TensorSpec, array: np.ndarray, narrowed: str | None) -> Outside:
    """The first element outside the range of its tensor, and why it is not taken."""
    low, high = range_of(spec, narrowed)
    within = (array >= low) & (array <= high)
    position = np.unravel_index(int(np.argmin(within)), array.shape)
    value = array[position].item()
    own_low, own_high = range_of(spec)
    if array.dtype.kind == "f":
        expected = "no NaN, and no positive infinity"
        hint = "what a runtime makes of such a number is not defined; -inf may be in a mask"
        if isfinite(value):
            expected, hint = f"at most {high:.6g}", f"this runtime computes in {narrowed}"
    else:
        expected = f"{_end(low)} to {_end(high)}"
        hint = "the model looks the number up in a table, which has rows for these alone"
        if own_low <= value <= own_high:
            hint = f"this runtime computes {spec.dtype} as {narrowed}, which does not hold it"
    return Outside([int(axis) for axis in position], value, expected, hint)


def _end(number: float) -> str:
    return "any" if isinf(number) else str(int(number))


class Outside(NamedTuple):
    """An element outside its range: where it is, and what an error says of it."""

    position: list[int]
    value: Any
    expected: str
    hint: str
