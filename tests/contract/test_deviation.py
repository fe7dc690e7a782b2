"""How far an output is from its reference: one measure, for any unit, size and type."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigraph.contract.tolerance import Deviation, Tolerance, deviation, deviations, output_scales

EQUAL = Deviation(0.0, 0.0)
APART = Deviation(math.inf, math.inf)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


# -- the measure -----------------------------------------------------------------------------------


@given(shape=shapes, seed=st.integers(0, 99), power=st.integers(-60, 60))
def test_the_unit_of_an_output_does_not_matter(shape, seed, power):
    reference, found = noise(*shape, seed=seed), noise(*shape, seed=seed + 100)
    whole = deviation(found, reference)
    scaled = deviation(found * np.float32(2.0**power), reference * np.float32(2.0**power))
    assert scaled.rms == pytest.approx(whole.rms, rel=1e-9)
    assert scaled.peak == pytest.approx(whole.peak, rel=1e-9)


@given(shape=shapes, seed=st.integers(0, 99), error=st.floats(1e-6, 1e3))
def test_it_is_the_size_of_the_error_over_that_of_the_reference(shape, seed, error):
    reference = noise(*shape, seed=seed).astype(np.float64)
    rms = math.sqrt(np.mean(reference**2))
    found = deviation(reference + error * rms, reference)
    assert found.rms == pytest.approx(error, rel=1e-6)
    assert found.peak == pytest.approx(error, rel=1e-6)
    assert found.rms <= found.peak * (1 + 1e-9)


@given(shape=shapes, seed=st.integers(0, 99), data=st.data())
def test_one_wrong_element_is_found_however_many_are_right(shape, seed, data):
    reference = noise(50, *shape, seed=seed)
    found = reference.copy()
    found.flat[data.draw(st.integers(0, found.size - 1))] += 1.0
    part = deviation(found, reference)
    rms = math.sqrt(np.mean(reference.astype(np.float64) ** 2))
    assert part.peak == pytest.approx(1 / rms, rel=1e-3)
    assert part.rms == pytest.approx(1 / rms / math.sqrt(found.size), rel=1e-3)
    for precision in ("fp32", "fp16"):
        assert not part.within(Tolerance.for_precision(precision, depth=100, contraction=1024))


@given(shape=shapes, seed=st.integers(0, 99))
def test_what_is_equal_deviates_by_nothing(shape, seed):
    array = noise(*shape, seed=seed)
    assert deviation(array, array.copy()) == EQUAL
    assert deviation(array.astype(np.float64), array) == EQUAL
    assert EQUAL.within(Tolerance(0.0, 0.0))


@given(shape=shapes, other=shapes)
def test_another_shape_is_apart(shape, other):
    if shape != other:
        assert deviation(np.ones(shape), np.ones(other)) == APART
    assert not APART.within(Tolerance(1e300, 1e300))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["found", "reference"])
def test_what_is_not_finite_on_one_side_is_apart(wrong: float, where: str):
    arrays = {"found": noise(3, 4), "reference": noise(3, 4)}
    arrays[where][1, 2] = wrong
    assert deviation(**arrays) == APART


def test_infinities_agree_with_themselves_and_nothing_else():
    reference = noise(3, 4)
    reference[0, 0], reference[2, 3] = math.inf, -math.inf
    assert deviation(reference.copy(), reference) == EQUAL
    assert deviation(-reference, reference) == APART
    shifted = reference + np.float32(0.5)
    finite = reference[np.isfinite(reference)].astype(np.float64)
    expected = 0.5 / math.sqrt(np.sum(finite**2) / reference.size)
    assert deviation(shifted, reference).peak == pytest.approx(expected, rel=1e-5)


def test_not_a_number_is_never_right():
    nan = np.full((2, 2), np.nan, np.float32)
    assert deviation(nan, nan) == APART
    assert not Deviation(math.nan, 0.0).within(Tolerance(1.0, 1.0))
    assert not Deviation(0.0, math.nan).within(Tolerance(1.0, 1.0))


def test_nothing_agrees_with_nothing():
    assert deviation(np.ones((2, 0)), np.ones((2, 0))) == EQUAL
    assert deviation(np.ones((2, 0)), np.ones((0, 2))) == APART


def test_zeros_agree_only_with_zeros():
    zeros = np.zeros((2, 3), np.float32)
    assert deviation(zeros, zeros) == EQUAL
    assert deviation(-zeros, zeros) == EQUAL
    assert deviation(zeros + 1e-30, zeros) == APART
    assert deviation(zeros, zeros + 1).peak == 1


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_])
def test_integers_and_booleans_are_right_or_wrong(dtype):
    reference = (np.arange(8) % 2).astype(dtype)
    assert deviation(reference.copy(), reference) == EQUAL
    found = reference.copy()
    found[3] = 1 - found[3].astype(np.int64)
    assert deviation(found, reference) == Deviation(1 / 8, 1 / 8)


def test_one_wrong_integer_among_many_is_not_hidden():
    reference = np.zeros(10**6, np.int64)
    found = reference.copy()
    found[7] = 1
    assert not deviation(found, reference).within(Tolerance(1e-3, 16e-3))


def test_codes_are_compared_as_numbers():
    reference = np.array([100, -100, 3, 50], np.int8)
    found = reference + np.array([1, 0, 0, 0], np.int8)
    size = float(np.sqrt(np.mean(np.square(reference.astype(float)))))
    assert deviation(found, reference).peak == pytest.approx(1 / size)
    large = np.array([2**62, 1])
    assert deviation(large + 1, large).peak == 1  # which floats could not tell apart


def test_halves_are_compared_in_double_precision():
    reference = np.full(1000, 60000.0, np.float16)  # whose squares and sums are beyond a half
    found = reference.copy()
    found[0] = 60032.0
    part = deviation(found, reference)
    assert part.peak == pytest.approx(32 / 60000, rel=1e-6)
    tiny = np.full(1000, 6e-8, np.float16)
    assert deviation(tiny * 2, tiny).rms == pytest.approx(1.0)


@pytest.mark.parametrize("at", [0, (1 << 20) - 1, 1 << 20, (2 << 20) + 4])
def test_large_outputs_are_compared_whole(at: int):
    reference = np.ones((2 << 20) + 5, np.float32)
    found = reference.copy()
    found[at] = 3
    part = deviation(found, reference)
    assert part.peak == pytest.approx(2)
    assert part.rms == pytest.approx(2 / math.sqrt(reference.size))


def test_memory_in_any_order_is_compared_by_place():
    reference = noise(5, 7)
    assert deviation(np.asfortranarray(reference), reference) == EQUAL
    assert deviation(reference, np.repeat(reference, 2, axis=1)[:, ::2]) == EQUAL
    assert deviation(reference.T, np.ascontiguousarray(reference.T)) == EQUAL


def test_the_worst_of_two_is_the_worst_of_each():
    assert Deviation(1, 5).worst(Deviation(2, 3)) == Deviation(2, 5)


# -- over several input sets -----------------------------------------------------------------------


def test_errors_are_relative_to_all_input_sets():
    # One number that happens to be small: its error is small beside the others.
    references = [{"score": np.array([[0.001]])}, {"score": noise(8, 1)}]
    scales = output_scales(references)
    every = np.concatenate([reference["score"] for reference in references])
    assert scales["score"] == pytest.approx(math.sqrt(np.mean(every**2)))
    found = {"score": np.array([[0.001 + 1e-7]])}
    tolerance = Tolerance.for_precision("fp32", depth=10, contraction=64)
    assert not deviations(found, references[0])["score"].within(tolerance)
    assert deviations(found, references[0], scales)["score"].within(tolerance)


def test_scales_leave_out_what_is_not_finite_and_what_is_not_there():
    mask = np.array([3.0, -math.inf, -3.0, math.nan])
    assert output_scales([{"mask": mask}])["mask"] == pytest.approx(math.sqrt(18 / 4))
    assert output_scales([]) == {}
    assert output_scales([{"empty": np.zeros((0, 3))}]) == {"empty": 0.0}
    zero = np.zeros(3)
    assert deviation(zero, zero, 0.0) == EQUAL
    assert deviation(zero + 1, zero, 0.0) == APART
    assert deviation(zero + 1, zero, 2.0) == Deviation(0.5, 0.5)
