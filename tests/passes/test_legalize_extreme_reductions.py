"""legalize-extreme-reductions: the largest of infinities, for a runtime that begins elsewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.passes.base import run_passes
from omnigraph.passes.legalize_extreme_reductions import LegalizeExtremeReductions
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

PASS = LegalizeExtremeReductions()
BEFORE = """g (float[N,3] x) => (float[N] y)
    { a = Constant<value_ints=[1]>()  y = ReduceMax<keepdims=0>(x, a) }"""
AFTER = """g (float[N,3] x) => (float[N] y)
    { a = Constant<value_ints=[1]>()  least = Constant<value={float: -inf}>()
      same = Equal(x, least)  other = Not(same)
      seen = ReduceMax<keepdims=0, noop_with_empty_axes=0>(other, a)
      found = ReduceMax<keepdims=0, noop_with_empty_axes=0>(x, a)
      y = Where(seen, found, least) }"""
ROWS = np.array([[-np.inf] * 3, [1, -np.inf, 2], [np.inf, 0, -np.inf], [np.nan, 1, 2]], np.float32)


def test_a_largest_gets_a_guard():
    after = graph_from_text(AFTER.replace("<value={float: -inf}>", "<value_float=0.0>"))
    constant = next(n for n in after.graph if n.outputs[0].name == "least")
    constant.attributes.clear()
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float32(-np.inf)))
    assert_pass(PASS, graph_from_text(BEFORE), after, {"x": ROWS[:3]})


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 4), keys=st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_numbers_hold_whatever_is_infinite(op: str, seed: int, rows: int, keys: int):
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([-np.inf, np.inf, 0.5, -2], np.float32), (rows, keys))
    graph = graph_from_text(
        f"g (float[N,K] x) => (float[N,1] y) {{ a = Constant<value_ints=[-1]>() y = {op}(x, a) }}"
    )
    assert run_passes(graph, (PASS,))[0].modified
    numpy_op, start = (np.max, -np.inf) if op == "ReduceMax" else (np.min, np.inf)
    expected = numpy_op(x, axis=-1, keepdims=True, initial=start)
    if keys:  # onnxruntime refuses a reduction of nothing
        np.testing.assert_array_equal(GraphRunner(graph).run({"x": x})["y"], expected)


def test_integers_have_no_infinity():
    body = "g (int64[N,3] x) => (int64[1,1] y) { y = ReduceMax(x) }"
    assert_miss(PASS, graph_from_text(body), "int64 has no infinity")


def test_booleans_are_a_guard_already():
    body = "g (bool[N,3] x) => (bool[1,1] y) { y = ReduceMax(x) }"
    assert_pass(PASS, graph_from_text(body), None, {"x": np.ones((2, 3), bool)})


def test_an_unknown_type_is_left():
    graph = graph_from_text("g (float[N,3] x) => (float[1,1] y) { t = Neg(x) y = ReduceMax(t) }")
    next(n for n in graph.graph if n.op_type == "Neg").outputs[0].type = None
    assert_miss(PASS, graph, "its type is not known")
