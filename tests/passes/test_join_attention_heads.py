"""Attention with heads side by side gives the numbers of the one with heads apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviation
from omnigraph.graph import count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.join_attention_heads import JoinAttentionHeads
from omnigraph.passes.pipelines import canonical
from omnigraph.testing import assert_miss, assert_outputs, assert_pass, graph_from_text

RNG = np.random.default_rng(0)
PARTS = """hs = Constant<value_ints=[0,0,4,8]>() ks = Constant<value_ints=[0,0,2,8]>()
    cs = Constant<value_ints=[0,0,32]>()
    qr = Reshape(q, hs) qt = Transpose<perm=[0,2,1,3]>(qr)
    kr = Reshape(k, ks) kt = Transpose<perm=[0,2,1,3]>(kr)
    vr = Reshape(v, ks) vt = Transpose<perm=[0,2,1,3]>(vr)"""
JOIN = "at = Transpose<perm=[0,2,1,3]>(a) y = Reshape(at, cs)"
INPUTS = "float[B,T,32] q, float[B,S,16] k, float[B,S,16] v"


def feeds(batch: int = 2, queries: int = 3, keys: int = 5, **more: np.ndarray):
    shapes = {"q": (batch, queries, 32), "k": (batch, keys, 16), "v": (batch, keys, 16)}
    return {n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items()} | more


def mask(batch: int = 2, queries: int = 3, keys: int = 5) -> np.ndarray:
    seen = RNG.random((batch, 1, queries, keys)) < 0.6
    seen[0, 0, 0] = False  # a row that sees nothing
    return seen


def test_transposes_and_reshapes_go():
    head = f"g ({INPUTS}, bool[B,1,T,S] m) => (float[B,T,32] y)"
    before = graph_from_text(f"{head} {{ {PARTS} a = Attention<scale=0.3>(qt, kt, vt, m) {JOIN} }}")
    after = graph_from_text(
        f"""{head} {{ y = Attention<scale=0.3, q_num_heads=4, kv_num_heads=2>
        (q, k, v, m) }}"""
    )
    assert_pass(JoinAttentionHeads(), before, after, feeds(m=mask()))


def test_a_past_stays_apart():
    cache = "float[B,2,P,8]"
    head = (
        f"g ({INPUTS}, {cache} pk, {cache} pv) => "
        "(float[B,T,32] y, float[B,2,N,8] nk, float[B,2,N,8] nv)"
    ).replace("B,S,16", "B,T,16")
    before = graph_from_text(
        f"{head} {{ {PARTS} a, nk, nv = Attention<is_causal=1>(qt, kt, vt, , pk, pv) {JOIN} }}"
    )
    after = graph_from_text(
        f"{head} {{ y, nk, nv = Attention<is_causal=1, q_num_heads=4, kv_num_heads=2>"
        "(q, k, v, , pk, pv) }"
    )
    past = {n: RNG.standard_normal((2, 2, 4, 8)).astype(np.float32) for n in ("pk", "pv")}
    assert_pass(JoinAttentionHeads(), before, after, feeds(keys=3, **past))


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotations_go_along(interleaved: int, positions: bool):
    table = (
        "float[R,2] cos, float[R,2] sin, int64[B,T] p"
        if positions
        else ("float[B,T,2] cos, float[B,T,2] sin, int64[B,T] p")
    )
    given_ = "cos, sin, p" if positions else "cos, sin"
    kind = f"interleaved={interleaved}, rotary_embedding_dim=4"
    head = f"g ({INPUTS}, {table}) => (float[B,T,32] y)".replace("B,S,16", "B,T,16")
    before = graph_from_text(
        f"""{head} {{ {PARTS} qo = RotaryEmbedding<{kind}>(qt, {given_})
        ko = RotaryEmbedding<{kind}>(kt, {given_}) a = Attention(qo, ko, vt) {JOIN} }}"""
    )
    after = graph_from_text(
        f"""{head} {{ qo = RotaryEmbedding<{kind}, num_heads=4>(q, {given_})
        ko = RotaryEmbedding<{kind}, num_heads=2>(k, {given_})
        y = Attention<q_num_heads=4, kv_num_heads=2>(qo, ko, v) }}"""
    )
    shape = (9, 2) if positions else (2, 3, 2)
    angles = RNG.random(shape)
    rotation = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    rotation["p"] = RNG.integers(0, 9, (2, 3))
    assert_pass(JoinAttentionHeads(), before, after, feeds(keys=3, **rotation))


def test_misses_say_why():
    head = f"g ({INPUTS}) => (float[B,T,32] y)"
    apart = graph_from_text(
        """g (float[B,4,T,8] q, float[B,4,S,8] k) => (float[B,T,32] y)
        { cs = Constant<value_ints=[0,0,32]>() a = Attention(q, k, k)
          at = Transpose<perm=[0,2,1,3]>(a) y = Reshape(at, cs) }"""
    )
    assert_miss(JoinAttentionHeads(), apart, "the queries are not split")
    left = graph_from_text(
        f"{head} {{ {PARTS} a = Attention(qt, kt, vt) e = Exp(a) z = ReduceSum(e) "
        f"{JOIN.replace('y =', 'w =')} y = Mul(w, z) }}"
    )
    assert_miss(JoinAttentionHeads(), left, "its heads are not joined just after")
    other = graph_from_text(
        f"{head} {{ {PARTS} a = Attention(qt, kt, vt) e = Exp(a) {JOIN.replace('(a)', '(e)')} }}"
    )
    assert_miss(JoinAttentionHeads(), other, "its heads are not joined just after")
    long = graph_from_text(
        f"{head} {{ {PARTS} a = Attention(qt, kt, vt) {JOIN} }}".replace(
            "B,T,32] q", "B,4096,32] q"
        )
    )
    assert_miss(JoinAttentionHeads(), long, "4096 queries are more than it pays for")
    scores = graph_from_text(
        f"g ({INPUTS}) => (float[B,T,32] y, float[B,4,T,S] z) "
        f"{{ {PARTS} a, b, c, z = Attention(qt, kt, vt) {JOIN} }}"
    )
    assert_miss(JoinAttentionHeads(), scores, "its scores are read")


@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    kind=st.sampled_from(["", "bool[B,1,T,S] m", "bool[B,4,T,S] m", "float[1,4,T,S] m"]),
    causal=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_mask_gives_the_same_numbers(batch, queries, keys, kind, causal):
    inputs = f"{INPUTS}, {kind}" if kind else INPUTS
    body = f"a = Attention<is_causal={int(causal)}>(qt, kt, vt{', m' if kind else ''})"
    graph = graph_from_text(f"g ({inputs}) => (float[B,T,32] y) {{ {PARTS} {body} {JOIN} }}")
    given_ = feeds(batch, queries, keys)
    if kind.startswith("bool"):
        given_["m"] = np.broadcast_to(
            mask(batch, queries, keys), (batch, 4 if "B,4" in kind else 1, queries, keys)
        ).copy()
    elif kind:
        given_["m"] = RNG.standard_normal((1, 4, queries, keys)).astype(np.float32)
    expected = GraphRunner(graph.clone()).run(given_)["y"]
    assert run_passes(graph, (JoinAttentionHeads(),))[0].modified
    assert count_ops(graph)["Transpose"] == 0
    found = GraphRunner(graph).run(given_)["y"]
    assert deviation(found, expected).rms < 1e-6


def test_a_traced_encoder_has_no_transposes_left(traced):
    made = traced("forward", kind="decoder", positions="alibi")
    graph = made.graph.clone()
    run_passes(graph, (*canonical(), JoinAttentionHeads()))
    assert count_ops(graph)["Transpose"] == 1  # of the tied embedding
    assert_outputs(graph, made.references)
