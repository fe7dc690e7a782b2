"""legalize-attention-axes: Attention of three axes, with its heads split and joined again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.legalize_attention_axes import LegalizeAttentionAxes
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

PASS = LegalizeAttentionAxes()
RNG = np.random.default_rng(0)


def packed(heads: int = 4, own: int = 2, size: int = 8, extra: str = "") -> Graph:
    """Attention of three axes with a mask; heads of queries, of keys, and their size."""
    return graph_from_text(
        f"g (float[B,T,{heads * size}] q, float[B,S,{own * size}] k, float[B,S,{own * size}] v, "
        f"float[B,1,T,S] m) => (float[B,T,{heads * size}] y) "
        f"{{ y = Attention<q_num_heads={heads}, kv_num_heads={own}{extra}>(q, k, v, m) }}"
    )


def feeds(batch: int, queries: int, keys: int, heads: int, own: int, size: int) -> dict:
    shapes = {
        "q": (batch, queries, heads * size),
        "k": (batch, keys, own * size),
        "v": (batch, keys, own * size),
        "m": (batch, 1, queries, keys),
    }
    return {name: RNG.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def test_heads_are_split_before_and_joined_behind():
    after = graph_from_text(
        """g (float[B,T,32] q, float[B,S,16] k, float[B,S,16] v, float[B,1,T,S] m)
            => (float[B,T,32] y)
        { a = Constant<value = int64[4] {0,0,4,8}>()  q1 = Reshape(q, a)
          q2 = Transpose<perm=[0,2,1,3]>(q1)
          b = Constant<value = int64[4] {0,0,2,8}>()  k1 = Reshape(k, b)
          k2 = Transpose<perm=[0,2,1,3]>(k1)
          v1 = Reshape(v, b)  v2 = Transpose<perm=[0,2,1,3]>(v1)
          h = Attention(q2, k2, v2, m)
          t = Transpose<perm=[0,2,1,3]>(h)  c = Constant<value = int64[3] {0,0,-1}>()
          y = Reshape(t, c) }"""
    )
    assert_pass(PASS, packed(), after, feeds(2, 3, 5, 4, 2, 8))


@given(
    batch=st.integers(1, 2),
    queries=st.integers(1, 4),
    keys=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    extra=st.sampled_from(["", ", scale=0.3", ", softcap=2.0", ", is_causal=1"]),
)
@settings(max_examples=15, deadline=None)
def test_numbers_hold(batch: int, queries: int, keys: int, heads: tuple[int, int], extra: str):
    graph = packed(*heads, 4, extra)
    given_ = feeds(batch, queries, keys, *heads, 4)
    expected = GraphRunner(graph.clone()).run(given_)["y"]
    assert run_passes(graph, (PASS,))[0].modified
    np.testing.assert_allclose(GraphRunner(graph).run(given_)["y"], expected, atol=2e-6)


def test_a_past_and_what_is_present_stay():
    graph = graph_from_text(
        """g (float[B,T,16] q, float[B,T,16] k, float[B,T,16] v, float[B,2,P,8] pk,
              float[B,2,P,8] pv)
            => (float[B,T,16] y, float[B,2,S,8] nk, float[B,2,S,8] nv)
        { y, nk, nv = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, , pk, pv) }"""
    )
    given_ = {n: RNG.standard_normal((2, 3, 16)).astype(np.float32) for n in "qkv"}
    given_ |= {n: RNG.standard_normal((2, 2, 4, 8)).astype(np.float32) for n in ("pk", "pv")}
    expected = GraphRunner(graph.clone()).run(given_)
    run_passes(graph, (PASS,))
    assert count_ops(graph)["Transpose"] == 4
    for name, found in GraphRunner(graph).run(given_).items():
        np.testing.assert_allclose(found, expected[name], atol=2e-6)


def test_four_axes_are_left():
    body = """g (float[B,2,T,8] q, float[B,2,S,8] k, float[B,2,S,8] v) => (float[B,2,T,8] y)
        { y = Attention(q, k, v) }"""
    given_ = {n: RNG.standard_normal((1, 2, 3, 8)).astype(np.float32) for n in "qkv"}
    assert_pass(PASS, graph_from_text(body), None, given_)


@pytest.mark.parametrize("name", ["q", "v"])
def test_unknown_ranks_are_left(name: str):
    graph = packed()
    next(v for v in graph.graph.inputs if v.name == name).shape = None
    assert_miss(PASS, graph, "its tensors are not known to have three axes")
