"""Values outside the range of their tensor are refused by position; all others are taken."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.errors import InputError
from omnigraph.program import TensorSpec
from omnigraph.runtimes.input_binder import InputBinder
from omnigraph.runtimes.value_ranges import fits

SHAPE = ("batch", "sequence")
GREATEST = {kind: float(np.finfo(kind).max) for kind in ("float16", "float32", "float64")}
IDS = TensorSpec("ids", "int64", SHAPE, least=0, greatest=9)
#: What OpenVINO does with 64 bits.
NARROWED = {"int64": "int32", "uint32": "int32", "float64": "float32"}


def refusal(spec: TensorSpec, array: np.ndarray, **options) -> str:
    with pytest.raises(InputError) as caught:
        InputBinder("forward", [spec], {}, **options).bind({spec.name: array})
    message = str(caught.value)
    assert f"Input {spec.name!r} of program 'forward' has a value outside its range, at" in message
    assert message.count("\n") == 1
    return message


def taken(spec: TensorSpec, array: np.ndarray, **options) -> None:
    (bound,) = InputBinder("forward", [spec], {}, **options).bind({spec.name: array})
    assert bound is array


def test_rows_that_a_table_does_not_have_are_refused_by_position():
    ids = np.arange(6).reshape(2, 3)
    taken(IDS, ids)
    ids[1, 2] = 10
    assert "at [1, 2]: expected 0 to 9, found 10.\nhint: the model looks" in refusal(IDS, ids)
    ids[0, 1] = -1
    assert "at [0, 1]: expected 0 to 9, found -1" in refusal(IDS, ids)


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from(
        ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    ),
    least=st.none() | st.integers(-300, 300),
    greatest=st.none() | st.integers(-300, 70000),
    values=st.lists(st.integers(-(2**63), 2**64 - 1) | st.integers(-400, 400), max_size=4),
    order=st.sampled_from("CF"),
)
def test_integers_are_taken_exactly_within_the_range(dtype, least, greatest, values, order):
    limits = np.iinfo(dtype)
    values = [value for value in values if limits.min <= value <= limits.max]
    check = fits(TensorSpec("x", dtype, ("n", 2), least=least, greatest=greatest))
    low, high = (
        (limits.min if least is None else least),
        (limits.max if greatest is None else greatest),
    )
    array = np.array([values, values], dtype, order=order).T
    assert (check is None or check(array)) == all(low <= value <= high for value in values)


@pytest.mark.parametrize("dtype", GREATEST)
@pytest.mark.parametrize("size", [1, 7, 16, 33, 1000])
def test_a_nan_anywhere_is_refused(dtype: str, size: int):
    spec = TensorSpec("x", dtype, ("n", 3), greatest=GREATEST[dtype])
    check = fits(spec)
    assert check is not None
    whole = np.random.default_rng(size).normal(size=(size, 3)).astype(dtype)
    extremes = [GREATEST[dtype], -GREATEST[dtype], -np.inf, 0.0, -0.0, np.finfo(dtype).tiny]
    for number in extremes:
        whole[-1, 1] = number
        assert check(whole)
        assert check(whole[::-1].T)
    negative_nan = np.copysign(np.array(np.nan, dtype), np.array(-1, dtype))
    for row in {0, size // 2, size - 1}:
        for number in (np.nan, negative_nan, np.inf):
            array = whole.copy()
            array[row, 2] = number
            assert not check(array)
            assert not check(array.T)
            position = re.escape(f"[{row}, 2]: expected no NaN, and no positive infinity, found")
            assert re.search(position, refusal(spec, array))


def test_nothing_is_asked_where_there_is_no_range():
    assert fits(TensorSpec("x", "float32", SHAPE)) is None
    assert fits(TensorSpec("x", "int64", SHAPE)) is None
    assert fits(TensorSpec("x", "bool", SHAPE, least=0, greatest=1)) is None
    assert fits(TensorSpec("x", "uint8", SHAPE, least=0, greatest=255)) is None


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_array_is_within_every_range(shape):
    taken(IDS, np.empty(shape, np.int64))
    taken(TensorSpec("x", "float32", SHAPE, least=0, greatest=1), np.empty(shape, np.float32))
    taken(TensorSpec("x", "float16", SHAPE, greatest=65504), np.empty(shape, np.float16))


def test_what_a_narrower_type_does_not_hold_is_refused():
    spec = TensorSpec("n", "int64", SHAPE)
    edges = np.array([[2**31 - 1, -(2**31)]])
    taken(spec, edges, narrowed=NARROWED)
    for number in (2**31, -(2**31) - 1, 2**32, 2**63 - 1):
        taken(spec, np.array([[number]]))
        message = refusal(spec, np.array([[0, number]]), narrowed=NARROWED)
        assert "at [0, 1]: expected -2147483648 to 2147483647" in message
        assert message.endswith(
            "hint: this runtime computes int64 as int32, which does not hold it"
        )
    assert "expected 0 to 9" in refusal(IDS, np.array([[2**32]]), narrowed=NARROWED)
    unsigned = TensorSpec("n", "uint32", SHAPE)
    assert "expected 0 to 2147483647" in refusal(
        unsigned, np.array([[2**31]], np.uint32), narrowed=NARROWED
    )


def test_floats_that_a_narrower_type_does_not_hold_are_refused():
    spec = TensorSpec("x", "float64", SHAPE, greatest=GREATEST["float64"])
    taken(spec, np.array([[3e38, -np.inf]]), narrowed=NARROWED)
    taken(spec, np.array([[1e39]]))
    message = refusal(spec, np.array([[0, 1e39]]), narrowed=NARROWED)
    assert "at [0, 1]: expected at most 3.40282e+38, found 1e+39" in message
    assert "this runtime computes in float32" in message
    assert "no NaN" in refusal(spec, np.array([[np.nan]]), narrowed=NARROWED)
