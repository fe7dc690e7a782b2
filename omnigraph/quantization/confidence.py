"""The upper end of a ratio or a share, which holds for 95 of 100 sets of samples.

It is one-sided: what matters is how much worse the truth may be than what a set happens to show.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

#: The part of all sets for which an end holds.
CONFIDENCE = 0.95
#: The normal deviation that so many results are below.
_NORMAL = NormalDist().inv_cdf(CONFIDENCE)
#: Student's t with more degrees of freedom is the normal deviation, to three digits.
_MANY = 1000


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


def upper_share(parts: np.ndarray, wholes: np.ndarray) -> float:
    """The upper end of Σ parts / Σ wholes, where the parts are counts of the wholes.

    With wholes of one, it is Wilson's (`omnigraph.contract.proportion`): none of 100 is below 2.6%,
    where the ends of `upper_ratio` would be 0. Of wholes that are more, such as the tokens of a
    row, see `upper_difference`.

    Args:
        parts: [rows], how many of each row are counted.
        wholes: [rows], of how many; each is above zero.

    Returns:
        Infinity for one row: nothing is known of how much rows differ.
    """
    return upper_difference(parts, np.zeros(len(parts)), wholes)


def upper_difference(worse: np.ndarray, better: np.ndarray, wholes: np.ndarray) -> float:
    """The upper end of Σ (worse - better) / Σ wholes, where all three are counts.

    It is the end of Tango's score interval for a difference of two shares that are counted on the
    same tries (Tango, Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design, Statistics in Medicine 17, 1998): the largest difference that the
    tries do not contradict. Where nothing becomes better, it is Wilson's end.

    Tries of one row may be alike. The rows then count as fewer tries that are independent: as many
    as have the variance that is found between rows (Korn & Graubard, Confidence intervals for
    proportions with small expected number of positive counts, Survey Methodology 24, 1998).

    Args:
        worse: [rows], the tries of each row that become wrong.
        better: [rows], those that become right.
        wholes: [rows], the tries of each row, above zero.

    Returns:
        Infinity for one row: nothing is known of how much rows differ.
    """
    rows, tries = len(wholes), float(wholes.sum())
    if rows < 2:
        return math.inf
    lost, won = float(worse.sum()), float(better.sum())
    found = (lost - won) / tries
    residuals = worse - better - found * wholes
    between = float(residuals @ residuals) * rows / (rows - 1) / tries**2
    independent = ((lost + won) / tries - found**2) / max(1.0, tries - 1)
    alike = max(1.0, between / independent) if independent > 0 else 1.0
    few = _t_or_normal(tries - 1) / _t_or_normal(rows - 1)
    part = min(1.0, few**2) / alike
    return _tango(lost * part, won * part, tries * part)


def _t_or_normal(freedom: float) -> float:
    return student_t(int(freedom)) if freedom <= _MANY else _NORMAL


def _tango(lost: float, won: float, tries: float) -> float:
    """The largest difference whose score is the normal deviation, by bisection."""
    low, high = (lost - won) / tries, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # The likeliest share of what becomes better, if this is the difference.
        linear = (2 * tries - lost + won) * middle - lost - won
        root = math.sqrt(max(0.0, linear**2 + 8 * tries * won * middle * (1 - middle)))
        share = max(0.0, (root - linear) / (4 * tries))
        spread = math.sqrt(tries * max(0.0, 2 * share + middle * (1 - middle)))
        within = tries * middle - (lost - won) <= _NORMAL * spread
        low, high = (middle, high) if within else (low, middle)
    return high


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
