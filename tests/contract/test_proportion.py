"""The lower end of a proportion."""

from __future__ import annotations

import pytest

from omnigraph.contract.proportion import lower_proportion


@pytest.mark.parametrize(
    ("hits", "tries", "value"), [(10, 10, 0.78706), (50, 100, 0.41885), (0, 10, 0.0), (0, 0, 0.0)]
)
def test_the_lower_end_of_a_proportion_is_wilson_s(hits: int, tries: int, value: float):
    assert lower_proportion(hits, tries) == pytest.approx(value, abs=1e-5)
