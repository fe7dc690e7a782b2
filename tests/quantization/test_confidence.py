"""Ends of intervals: that they are those of the tables, and hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.quantization.confidence import student_t, upper_ratio


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 6.313752), (2, 2.919986), (5, 2.015048), (10, 1.812461), (31, 1.695519), (120, 1.657651)],
)
def test_student_t_is_that_of_the_table(freedom: int, value: float):
    assert student_t(freedom) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("rows", [2, 3, 8, 40])
def test_the_upper_end_of_a_ratio_holds_for_95_of_100(rows: int):
    rng = np.random.default_rng(rows)
    ones = np.ones(rows)
    below = [upper_ratio(rng.normal(0.3, 1, rows), ones) >= 0.3 for _ in range(3000)]
    assert 0.937 <= np.mean(below) <= 0.963
    assert upper_ratio(np.zeros(1), np.ones(1)) == np.inf
