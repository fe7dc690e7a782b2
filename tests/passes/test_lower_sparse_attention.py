"""Sliding windows and block-sparse patterns by blocks: the graph, numbers, near misses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparse_attention_graphs import (
    BIASED,
    CAUSAL_WINDOW,
    PADDED,
    SYMMETRIC_WINDOW,
    assert_same_numbers,
    attention_graph,
    feeds_for,
    lowered,
)

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph, count_ops, declare_ranges
from omnigraph.passes.base import run_passes
from omnigraph.passes.lower_sparse_attention import LowerSparseAttention
from omnigraph.testing import EXACT, assert_miss, assert_pass, graph_from_text

#: Half types store each result rounded, and either form rounds its scores once or twice more.
HALF = Tolerance(rms=4 * 2.0**-11, peak=64 * 2.0**-11)


def largest_axes(graph: Graph, feeds: dict[str, np.ndarray]) -> int:
    """The most elements that any value of the graph has."""
    for node in list(graph.graph):
        for value in node.outputs:
            if value.dtype is not None and not value.is_graph_output():
                graph.graph.outputs.append(value)
    return max(array.size for array in GraphRunner(graph).run(feeds).values())


# The graph ----------------------------------------------------------------------------------------

AFTER = """
g (float[B,2,T,4] q, float[B,2,T,4] k, float[B,2,T,4] v, int64[B,T] tokens)
=> (float[B,2,T,4] y) {
    x0 = Shape<start=2, end=3>(q)  x1 = Squeeze(x0)  x2 = Shape<start=2, end=3>(k)
    x3 = Squeeze(x2)  x4 = Constant<value = int64 {0}>()  x5 = Constant<value = int64 {1}>()
    x6 = Constant<value = int64 {4}>()  x7 = Min(x1, x6)  x8 = Sub(x7, x5)  x9 = Add(x1, x8)
    x10 = Div(x9, x7)  x11 = Constant<value = int64 {-3}>()  x12 = Sub(x5, x3)
    x13 = Max(x11, x12)  x14 = Sub(x4, x13)  x15 = Add(x14, x7)  x16 = Range(x4, x10, x5)
    x17 = Mul(x16, x7)  x18 = Range(x4, x15, x5)  x19 = Add(x18, x13)
    x20 = Constant<value = int64[1] {1}>()  x21 = Unsqueeze(x17, x20)  x22 = Add(x21, x19)
    x23 = Sub(x3, x5)  x24 = Clip(x22, x4, x23)  x25 = Range(x4, x7, x5)
    x26 = Constant<value = int64[2] {1, 2}>()  x27 = Unsqueeze(x17, x26)
    x28 = Unsqueeze(x25, x20)  x29 = Unsqueeze(x17, x20)  x30 = Add(x29, x25)
    x31 = Sub(x1, x5)  x32 = Min(x30, x31)  x33 = Equal(x24, x22)  x34 = Unsqueeze(x33, x20)
    x35 = Constant<value = int64[1] {0}>()  x36 = Unsqueeze(x10, x35)  x37 = Unsqueeze(x7, x35)
    x38 = Unsqueeze(x15, x35)  x50 = GreaterOrEqual(x28, x19)
    x51 = Constant<value = int64 {3}>()  x52 = Add(x51, x19)  x53 = GreaterOrEqual(x52, x28)
    x54 = And(x50, x53)  x55 = And(x54, x34)  x59 = Mul(x36, x37)  x39 = Gather<axis=2>(q, x32)
    x40 = Constant<value = int64[1] {4}>()  x41 = Constant<value = int64[1] {-1}>()
    x42 = Concat<axis=0>(x41, x36, x37, x40)  x43 = Reshape(x39, x42)
    x44 = Gather<axis=2>(k, x24)  x45 = Concat<axis=0>(x41, x36, x38, x40)
    x46 = Reshape(x44, x45)  x47 = Gather<axis=2>(v, x24)
    x48 = Concat<axis=0>(x41, x36, x38, x40)  x49 = Reshape(x47, x48)
    x56 = Concat<axis=0>(x20, x36, x37, x38)  x57 = Reshape(x55, x56)
    x58 = Attention(x43, x46, x49, x57)
    x60 = Constant<value = int64[2] {-1, 2}>()  x61 = Concat<axis=0>(x60, x59, x40)
    x62 = Reshape(x58, x61)  x63 = Reshape(x1, x20)  x64 = Constant<value = int64[1] {2}>()
    y = Slice(x62, x35, x63, x64) }"""


def test_a_window_becomes_attention_of_blocks():
    before = attention_graph(CAUSAL_WINDOW)
    after = graph_from_text(AFTER)
    assert_pass(LowerSparseAttention(block=4), before, after, feeds_for(11))


def test_lengths_that_are_declared_short_are_left_dense():
    graph = attention_graph(CAUSAL_WINDOW)
    declare_ranges(graph, {"T": (1, 1023)})
    assert_miss(LowerSparseAttention(block=4), graph, "lengths up to 1023 are less than 1024")
    declare_ranges(graph, {"T": (1, 1024)})
    (record,) = run_passes(graph, (LowerSparseAttention(block=4),))
    assert record.modified


@pytest.mark.parametrize("mask", ["shared", "padded"])
def test_heads_in_groups_give_the_numbers_of_all_at_once(mask: str):
    more = {"shared": "", "padded": f"{PADDED} both = And(kept, seen)"}[mask]
    graph = attention_graph(
        CAUSAL_WINDOW,
        more=more,
        mask={"shared": "Identity(seen)", "padded": "Identity(both)"}[mask],
    )
    dense = GraphRunner(graph.clone())
    run_passes(graph, (LowerSparseAttention(block=4, at_once=1),))
    assert count_ops(graph)["Attention"] == 2
    blocks = GraphRunner(graph)
    for length in (1, 4, 11):
        feeds = feeds_for(length)
        for found in deviations(blocks.run(feeds), dense.run(feeds)).values():
            assert found.within(EXACT)


def test_no_value_grows_with_the_square_of_the_length():
    graph = attention_graph(
        SYMMETRIC_WINDOW,
        more=f"{PADDED} {BIASED} both = And(kept, seen)",
        mask="Where(both, bias, lowest)",
    )
    lowered(graph, block=8)
    short, long = (largest_axes(graph.clone(), feeds_for(length)) for length in (100, 400))
    assert long < 4.2 * short


def test_the_mask_that_is_not_read_any_more_is_gone():
    graph = lowered(attention_graph(CAUSAL_WINDOW))
    assert count_ops(graph)["Attention"] == 1
    assert "mask" not in {value.name for node in graph.graph for value in node.outputs}


# Numbers ------------------------------------------------------------------------------------------

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 33)


@pytest.mark.parametrize("seen", [CAUSAL_WINDOW, SYMMETRIC_WINDOW], ids=["causal", "symmetric"])
@pytest.mark.parametrize("mask", ["boolean", "bias"])
@pytest.mark.parametrize("products", [False, True], ids=["attention", "products"])
def test_numbers_at_many_lengths_with_padding(seen, mask, products):
    more, made = f"{PADDED} both = And(kept, seen)", "Identity(both)"
    if mask == "bias":
        more, made = f"{more} {BIASED}", "Where(both, bias, lowest)"
    graph = attention_graph(seen, more=more, mask=made)
    assert_same_numbers(graph, *map(feeds_for, LENGTHS), products=products)
    assert count_ops(graph)["Attention"] == (0 if products else 1)


@pytest.mark.parametrize("products", [False, True], ids=["attention", "products"])
def test_rows_that_are_hidden_entirely_are_zero_either_way(products):
    graph = attention_graph(
        CAUSAL_WINDOW,
        more="axes = Constant<value_ints=[1, 2]>() token = Cast<to=9>(tokens)"
        " there = Unsqueeze(token, axes)",
        mask="And(there, seen)",
    )
    feeds = feeds_for(9)
    feeds["tokens"][:, :6] = 0
    assert not GraphRunner(graph).run(feeds)["y"][:, :, 0].any()
    assert_same_numbers(graph, feeds, products=products)


def test_queries_at_the_end_of_more_keys():
    graph = attention_graph(CAUSAL_WINDOW, keys="S", inputs=", int64[past] p")
    sizes = [(1, 1), (1, 9), (1, 40), (3, 12), (9, 10), (17, 40)]
    feeds = [{**feeds_for(t, s), "p": np.zeros(s - t, np.int64)} for t, s in sizes]
    assert_same_numbers(graph, *feeds)


def test_one_query_reads_no_more_keys_than_its_window():
    graph = attention_graph(CAUSAL_WINDOW, keys="S", inputs=", int64[past] p")
    feeds = {**feeds_for(1, 500), "p": np.zeros(499, np.int64)}
    (attention,) = (node for node in lowered(graph).graph if node.op_type == "Attention")
    graph.graph.outputs.append(attention.inputs[1])
    assert GraphRunner(graph).run(feeds)[attention.inputs[1].name].shape == (4, 1, 4, 4)


def test_fewer_heads_of_keys_than_of_queries():
    graph = attention_graph(CAUSAL_WINDOW, heads=(6, 2))
    assert_same_numbers(graph, *(feeds_for(n, heads=(6, 2)) for n in (3, 10)))


def test_scale_and_softcap_are_kept():
    graph = attention_graph(CAUSAL_WINDOW, attributes="scale=0.3, softcap=2.0")
    assert_same_numbers(graph, feeds_for(10))


@settings(max_examples=25, deadline=None)
@given(
    left=st.integers(-2, 9),
    right=st.integers(2, 9) | st.integers(-2, 2),
    block=st.integers(1, 9),
    length=st.integers(1, 40),
    past=st.integers(0, 30),
    batch=st.integers(1, 3),
)
def test_any_window_any_block_any_length(left, right, block, length, past, batch):
    assume(left + right >= 0)  # or no key is seen at all
    seen = f"""l = Constant<value_int={left}>() r = Constant<value_int={right}>()
        a0 = Sub(i, l) a1 = Add(i, r) a2 = GreaterOrEqual(j, a0) a3 = LessOrEqual(j, a1)
        seen = And(a2, a3)"""
    graph = attention_graph(seen, keys="S", inputs=", int64[past] p")
    feeds = {**feeds_for(length, length + past, batch=batch), "p": np.zeros(past, np.int64)}
    assert_same_numbers(graph, feeds, block=block)


def test_half_floats_with_a_number_that_hides():
    graph = attention_graph(
        SYMMETRIC_WINDOW,
        dtype="float16",
        more="""f0 = Constant<value_float=0.0>() shown = Cast<to=10>(f0)
            f1 = Constant<value_float=-65504.0>() lowest = Cast<to=10>(f1)""",
        mask="Where(seen, shown, lowest)",
    )
    feeds = {n: a.astype(np.float16) if n != "tokens" else a for n, a in feeds_for(13).items()}
    dense = GraphRunner(graph.clone()).run(feeds)
    for found in deviations(GraphRunner(lowered(graph)).run(feeds), dense).values():
        assert found.within(HALF)


# Near misses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seen": "seen = LessOrEqual(j, i)"}, "may show every key before the query"),
        ({"seen": "a = Sub(i, w) seen = Greater(j, a)"}, "may show every key after the query"),
        (
            {
                "seen": CAUSAL_WINDOW,
                "more": f"{PADDED} any = Or(seen, kept)",
                "mask": "Identity(any)",
            },
            "may show every key",
        ),
        (
            {
                "seen": CAUSAL_WINDOW,
                "more": f"{PADDED} {BIASED} both = And(there, seen)",
                "mask": "Where(both, bias, lowest)",
            },
            "a row may be hidden entirely by a finite number",
        ),
        ({"seen": CAUSAL_WINDOW, "keys": "300"}, "up to 300 are less than 1024"),
        (
            {"seen": CAUSAL_WINDOW, "inputs": ", bool[T,T] m", "mask": "And(seen, m)"},
            "has an element for each query and key",
        ),
        ({"seen": CAUSAL_WINDOW, "attributes": "is_causal=1"}, "a causal flag"),
        (
            {"seen": "a0 = Less(j, j) a1 = Less(j, i) seen = And(a0, a1)"},
            "the mask shows no key",
        ),
    ],
)
def test_left_alone_with_the_reason(options, reason):
    assert_miss(LowerSparseAttention(), attention_graph(**options), reason)


def test_attention_without_a_mask_is_no_site():
    graph = graph_from_text(
        """g (float[B,2,T,4] q, float[B,2,T,4] k, float[B,2,T,4] v) => (float[B,2,T,4] y)
        { y = Attention(q, k, v) }"""
    )
    (record,) = run_passes(graph, (LowerSparseAttention(),))
    assert not record.modified and not record.findings
