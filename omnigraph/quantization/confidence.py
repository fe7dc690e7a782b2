"""The upper end of a ratio, which holds for 95 of 100 sets of samples.

It is one-sided: what matters is how much worse the truth may be than what a set happens to show.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

#: The part of all sets for which an end holds.
CONFIDENCE = 0.95


def upper_ratio(parts: np.ndarray, wholes: np.ndarray) -> float:
    """The upper end of Σ parts / Σ wholes, for rows like these.

    The standard error is that of a ratio of sums, by the residuals of its rows (Cochran, Sampling
    Techniques, 1977, section 6.4). With few rows it is uncertain itself, so Student's t takes the
    place of the normal distribution (section 2.8 there).

    Args:
        parts: [rows], such as the loss of each row.
        wholes: [rows], such as the number of tokens of each row; their sum is above zero.

    Returns:
        Infinity for one row: nothing is known of how much rows differ.
    """
    rows = len(parts)
    if rows < 2:
        return math.inf
    total = float(wholes.sum())
    ratio = float(parts.sum()) / total
    residuals = parts - ratio * wholes
    error = math.sqrt(float(residuals @ residuals) * rows / (rows - 1)) / total
    return ratio + student_t(rows - 1) * error


@lru_cache
def student_t(freedom: int) -> float:
    """The t that 95 of 100 results with so many degrees of freedom are below.

    The distribution is a finite sum for whole numbers of degrees (Abramowitz & Stegun, 26.7.3 and
    26.7.4); it is inverted by bisection.
    """
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _below_t(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def _below_t(t: float, freedom: int) -> float:
    """The probability of less than t, where t is above zero."""
    angle = math.atan(t / math.sqrt(freedom))
    odd, term, total = freedom % 2, 1.0, 0.0
    for step in range(freedom // 2):
        total += term
        term *= math.cos(angle) ** 2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    if odd:
        between = 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    else:
        between = math.sin(angle) * total
    return (1 + between) / 2
