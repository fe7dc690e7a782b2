"""Ends of intervals: that they are those of the tables, and hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.proportion import lower_proportion
from omnigraph.quantization.confidence import (
    student_t,
    upper_difference,
    upper_ratio,
    upper_share,
)


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


@pytest.mark.parametrize(("hits", "tries"), [(0, 24), (0, 2), (3, 40), (40, 40), (90, 2000)])
def test_the_upper_end_of_a_share_of_rows_is_wilson_s(hits: int, tries: int):
    rows = np.arange(tries) < hits
    expected = 1 - lower_proportion(tries - hits, tries)
    assert upper_share(rows, np.ones(tries)) == pytest.approx(expected, abs=1e-9)
    assert upper_share(np.zeros(1), np.ones(1)) == np.inf


@pytest.mark.parametrize(
    ("rows", "worse", "better"), [(24, 0.1, 0.05), (100, 0.05, 0.04), (100, 0.03, 0.0)]
)
def test_the_upper_end_of_a_difference_holds_for_95_of_100(rows: int, worse: float, better: float):
    rng = np.random.default_rng(rows)

    def holds() -> bool:
        drawn = rng.random(rows)
        lost, won = drawn < worse, (drawn >= worse) & (drawn < worse + better)
        return upper_difference(lost * 1.0, won * 1.0, np.ones(rows)) >= worse - better

    assert 0.935 <= np.mean([holds() for _ in range(2000)]) <= 0.97


def test_a_difference_whose_score_is_the_normal_deviation_is_the_end():
    worse, better, tries = 9.0, 4.0, 60.0
    rows = np.arange(60)
    won = (rows >= 9) & (rows < 13)
    end = upper_difference((rows < 9) * 1.0, won * 1.0, np.ones(60))
    shares = np.linspace(1e-9, (1 - end) / 2 - 1e-9, 400_001)  # of what becomes better
    likelihood = worse * np.log(shares + end) + better * np.log(shares)
    likelihood += (tries - worse - better) * np.log(1 - 2 * shares - end)
    share = shares[likelihood.argmax()]
    spread = np.sqrt(tries * (2 * share + end - end**2))
    assert (tries * end - (worse - better)) / spread == pytest.approx(1.644854, abs=1e-3)


def test_tokens_of_a_row_that_are_alike_count_as_fewer():
    rng = np.random.default_rng(4)
    shares = rng.beta(0.9, 29.1, (2000, 32))  # of the tokens of each row
    counts = rng.binomial(128, shares)
    ends = [upper_share(row, np.full(32, 128)) for row in counts]
    assert 0.92 <= np.mean(np.array(ends) >= 0.03) <= 0.97
    independent = [1 - lower_proportion(32 * 128 - row.sum(), 32 * 128) for row in counts]
    assert np.mean(np.array(independent) >= 0.03) < 0.85
    # Two rows say little of others, however many tokens they have.
    assert upper_share(np.zeros(2), np.full(2, 500)) > 0.03
