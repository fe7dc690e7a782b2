"""Selections go up as far as nothing else needs the rows that they leave out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.passes.base import run_passes
from omnigraph.passes.hoist_selections import HoistSelections
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


LAST = (
    "minus = Constant<value_ints=[-1]>()  end = Constant<value_ints=[9223372036854775807]>()  "
    "one = Constant<value_ints=[1]>()  "
)
FEEDS = {"x": random(2, 5, 4), "w": random(4, 6), "g": random(4)}


def test_a_slice_goes_before_the_norm_and_the_product():
    head = "g (float[B,T,4] x, float[4,6] w, float[4] g) => (float[B,1,6] y)"
    before = graph_from_text(
        f"{head} {{ {LAST} n = LayerNormalization<axis=-1>(x, g) e = Exp(n) p = MatMul(e, w)"
        " y = Slice(p, minus, end, one) }"
    )
    after = graph_from_text(
        f"{head} {{ {LAST} s = Slice(x, minus, end, one) n = LayerNormalization<axis=-1>(s, g)"
        " e = Exp(n) y = MatMul(e, w) }"
    )
    assert_pass(HoistSelections(), before, after, FEEDS)


def test_a_residual_is_followed_on_both_sides():
    before = graph_from_text(
        f"""g (float[B,T,4] x, float[4,6] w, float[6,4] u, float[4] g) => (float[B,1,4] y)
        {{ {LAST} h = Exp(x) n = RMSNormalization<axis=-1>(h, g) a = MatMul(n, w) r = Gelu(a)
           d = MatMul(r, u) s = Add(h, d) y = Slice(s, minus, end, one) }}"""
    )
    feeds = {**FEEDS, "u": random(6, 4)}
    expected = GraphRunner(before.clone()).run(feeds)["y"]
    (record,) = run_passes(before, (HoistSelections(),))
    assert record.findings[0].became == "Slice before 6 nodes, the first Exp"
    selections = [n for n in before.graph if n.op_type == "Slice"]
    assert [n.inputs[0].name for n in selections] == ["x"]
    np.testing.assert_allclose(GraphRunner(before).run(feeds)["y"], expected, rtol=1e-6)


def test_a_number_as_index_loses_its_axis_at_the_end():
    before = graph_from_text(
        """g (float[B,T,4] x, float[4,6] w) => (float[B,6] y)
        { e = Exp(x) p = MatMul(e, w) i = Constant<value_int=0>() y = Gather<axis=1>(p, i) }"""
    )
    feeds = {name: FEEDS[name] for name in ("x", "w")}
    expected = GraphRunner(before.clone()).run(feeds)["y"]
    (record,) = run_passes(before, (HoistSelections(),))
    assert record.modified
    assert [n.op_type for n in before.graph if n.op_type != "Constant"] == [
        "Gather",
        "Exp",
        "MatMul",
        "Squeeze",
    ]
    np.testing.assert_allclose(GraphRunner(before).run(feeds)["y"], expected, rtol=1e-6)


def test_rows_of_each_element_of_the_batch():
    before = graph_from_text(
        """g (float[B,T,4] x, float[4,6] w, int64[B,1,1] i) => (float[B,1,6] y)
        { e = Exp(x) r = Mul(x, e) p = MatMul(r, w) y = GatherND<batch_dims=1>(p, i) }"""
    )
    after = graph_from_text(
        """g (float[B,T,4] x, float[4,6] w, int64[B,1,1] i) => (float[B,1,6] y)
        { s = GatherND<batch_dims=1>(x, i) e = Exp(s) r = Mul(s, e) y = MatMul(r, w) }"""
    )
    feeds = {"x": FEEDS["x"], "w": FEEDS["w"], "i": np.array([[[4]], [[2]]])}
    assert_pass(HoistSelections(), before, after, feeds)


ATTENTION = """g (float[B,T,8] x, float[8,8] w, bool[B,1,T,T] m) => (float[B,1,8] y)
    {{ {last} h = Exp(x) q = MatMul(h, w) hs = Constant<value_ints=[0,0,2,4]>()
       cs = Constant<value_ints=[0,0,8]>()
       qr = Reshape(q, hs) qt = Transpose<perm=[0,2,1,3]>(qr)
       kr = Reshape(h, hs) kt = Transpose<perm=[0,2,1,3]>(kr)
       a = Attention{causal}(qt, kt, kt{mask}) at = Transpose<perm=[0,2,1,3]>(a)
       ar = Reshape(at, cs) y = Slice(ar, minus, end, one) }}"""


def attention_feeds(tokens: int = 5) -> dict[str, np.ndarray]:
    mask = RNG.random((2, 1, tokens, tokens)) < 0.7
    mask[0, 0, -1] = False  # a row that sees nothing
    return {"x": random(2, tokens, 8), "w": random(8, 8), "m": mask}


@pytest.mark.parametrize("tokens", [1, 5])
def test_one_query_of_an_attention(tokens: int):
    before = graph_from_text(ATTENTION.format(last=LAST, causal="", mask=", m"))
    feeds = attention_feeds(tokens)
    expected = GraphRunner(before.clone()).run(feeds)["y"]
    (record,) = run_passes(before, (HoistSelections(),))
    assert record.modified
    selected = sorted(n.inputs[0].name for n in before.graph if n.op_type == "Slice")
    assert selected == ["h", "m"]  # the keys need all of h
    np.testing.assert_allclose(GraphRunner(before).run(feeds)["y"], expected, rtol=1e-5)
    assert not run_passes(before, (HoistSelections(),))[0].modified


def test_misses_say_why():
    causal = graph_from_text(ATTENTION.format(last=LAST, causal="<is_causal=1>", mask=""))
    run_passes(causal, (HoistSelections(),))
    assert_miss(HoistSelections(), causal, "an Attention whose mask is written out")
    used = graph_from_text(
        f"""g (float[B,T,4] x) => (float[B,1,4] y, float[B,T,4] z)
        {{ {LAST} e = Exp(x) z = Neg(e) y = Slice(e, minus, end, one) }}"""
    )
    assert_miss(HoistSelections(), used, "all rows are needed by Neg")
    output = graph_from_text(
        f"""g (float[B,T,4] x) => (float[B,1,4] y, float[B,T,4] e)
        {{ {LAST} e = Exp(x) y = Slice(e, minus, end, one) }}"""
    )
    assert_miss(HoistSelections(), output, "needs all rows")
    mixed = graph_from_text(
        f"""g (float[B,T,4] x) => (float[B,1,4] y)
        {{ {LAST} e = CumSum(x, one) y = Slice(e, minus, end, one) }}"""
    )
    assert_miss(HoistSelections(), mixed, "CumSum mixes rows")
    batch = graph_from_text(
        """g (float[B,T,4] x, float[1,T,4] p, int64[B,1,1] i) => (float[B,1,4] y)
        { e = Add(x, p) y = GatherND<batch_dims=1>(e, i) }"""
    )
    assert_miss(HoistSelections(), batch, "differ by element of the batch")


def test_the_last_axis_is_no_site():
    graph = graph_from_text(
        """g (float[B,T,4] x) => (float[B,T,2] y)
        { e = Exp(x) two = Constant<value_ints=[2]>() four = Constant<value_ints=[4]>()
          y = Slice(e, two, four, two) }"""
    )
    assert run_passes(graph, (HoistSelections(),))[0].findings == ()


OPS = ["Exp({0})", "Add({0}, {0})", "Mul({0}, g)", "Softmax<axis=-1>({0})", "Add({0}, x)"]


@given(
    ops=st.lists(st.sampled_from(OPS), min_size=1, max_size=5),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    gather=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_chain_of_rows_gives_the_same_numbers(ops, batch, tokens, gather):
    value, lines = "x", []
    for index, op in enumerate(ops):
        lines.append(f"v{index} = {op.format(value)}")
        value = f"v{index}"
    end = (
        f"y = GatherND<batch_dims=1>({value}, i)"
        if gather
        else f"y = Slice({value}, minus, end, one)"
    )
    graph = graph_from_text(
        f"g (float[B,T,4] x, float[4] g, int64[B,1,1] i) => (float[B,1,4] y) "
        f"{{ {LAST} {' '.join(lines)} {end} }}"
    )
    feeds = {
        "x": random(batch, tokens, 4),
        "g": random(4),
        "i": RNG.integers(0, tokens, (batch, 1, 1)),
    }
    expected = GraphRunner(graph.clone()).run(feeds)["y"]
    assert run_passes(graph, (HoistSelections(),))[0].modified
    np.testing.assert_array_equal(GraphRunner(graph).run(feeds)["y"], expected)
    assert not run_passes(graph, (HoistSelections(),))[0].modified
