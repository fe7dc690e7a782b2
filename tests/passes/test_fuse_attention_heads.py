"""Heads of written-out attention: repeated, joined with the batch, packed; and its past."""

from __future__ import annotations

import numpy as np
import pytest
from attention_spellings import (
    ATTENTION,
    END,
    OUT,
    PASS,
    PRODUCT,
    QKV,
    SIZES,
    attention,
    conditions,
    floats,
    fuse,
    graph,
    tensors,
)

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.fuse_attention import FuseAttention
from omnigraph.passes.legalize_attention_past import LegalizeAttentionPast
from omnigraph.passes.legalize_causal_mask import LegalizeCausalMask
from omnigraph.testing import EXACT, assert_pass

# Heads and layouts --------------------------------------------------------------------------------

GROUPED = "float[B,4,T,8] q, float[B,2,S,8] k, float[B,2,S,8] v"
SHAPES = """b = Shape<start=0, end=1>(k) l = Shape<start=2, end=3>(k)
    h = Constant<value_ints=[4]>() d = Constant<value_ints=[8]>()
    four = Concat<axis=0>(b, h, l, d)"""


def repeated(how: str) -> str:
    """Keys and values of 2 heads made to 4, each twice in a row."""
    parts = [SHAPES]
    for x in "kv":
        if how == "Gather":
            parts.append(
                f"j{x} = Constant<value_ints=[0,0,1,1]>() {x}4 = Gather<axis=1>({x}, j{x})"
            )
            continue
        parts.append(f"{x}u = Unsqueeze({x}, n2)")
        if how == "Expand":
            parts.append(f"s{x} = Concat<axis=0>(b, n2, n2, l, d) {x}e = Expand({x}u, s{x})")
        elif how == "Tile":
            parts.append(f"s{x} = Constant<value_ints=[1,1,2,1,1]>() {x}e = Tile({x}u, s{x})")
        else:
            parts.append(f"{x}e = Concat<axis=2>({x}u, {x}u)")
        parts.append(f"{x}4 = Reshape({x}e, four)")
    return " ".join(parts)


def with_shapes(found: Graph, **shapes: list) -> Graph:
    """A Graph whose values of these names have these shapes, as torch's exporter gives them."""
    import onnx_ir as ir

    for node in found.graph:
        for value in node.outputs:
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
    return found


FOUR = ["B", 4, "S", 8]
FIVE = ["B", 2, 2, "S", 8]
REPEATED = {"ke": FIVE, "ve": FIVE, "k4": FOUR, "v4": FOUR, "kt": ["B", 4, 8, "S"]}


@pytest.mark.parametrize("how", ["Expand", "Tile", "Concat", "Gather"])
def test_repeated_heads_are_grouped(how: str) -> None:
    body = f"{repeated(how)} kt = Transpose<perm=[0,1,3,2]>(k4) m = MatMul(q, kt)"
    before = graph(GROUPED, f"{body} w = Softmax(m) y = MatMul(w, v4)")
    after = graph(GROUPED, f"{ATTENTION}(q, k, v)")
    assert_pass(PASS, with_shapes(before, **REPEATED), after, tensors(heads=2))


def test_heads_in_another_order_are_not_grouped() -> None:
    body = """j = Constant<value_ints=[0,1,0,1]>()
        k4 = Gather<axis=1>(k, j) v4 = Gather<axis=1>(v, j)
        kt = Transpose<perm=[0,1,3,2]>(k4) m = MatMul(q, kt) w = Softmax(m) y = MatMul(w, v4)"""
    found = graph(GROUPED, body)
    assert fuse(found, tensors(heads=2)) == ["Attention, 4 heads"]
    assert count_ops(found)["Gather"] == 2


def test_one_head_of_keys_for_all() -> None:
    inputs = "float[B,4,T,8] q, float[B,1,S,8] k, float[B,1,S,8] v"
    before = graph(inputs, f"{PRODUCT} w = Softmax(s) y = MatMul(w, v)")
    assert_pass(PASS, before, graph(inputs, f"{ATTENTION}(q, k, v)"), tensors(heads=1))


def test_the_transposes_of_keys_are_absorbed() -> None:
    inputs = "float[B,4,T,8] q, float[B,S,4,8] k, float[B,4,S,8] v"
    before = graph(inputs, f"kt = Transpose<perm=[0,2,3,1]>(k) m = MatMul(q, kt) {END}")
    after = graph(inputs, f"t = Transpose<perm=[0,2,1,3]>(k) {ATTENTION}(q, t, v)")
    feeds = tensors()
    assert_pass(PASS, before, after, {**feeds, "k": feeds["k"].swapaxes(1, 2).copy()})


def test_keys_that_are_stored_turned() -> None:
    inputs = "float[B,4,T,8] q, float[B,4,8,S] k, float[B,4,S,8] v"
    before = graph(inputs, f"m = MatMul(q, k) {END}")
    after = graph(inputs, f"t = Transpose<perm=[0,1,3,2]>(k) {ATTENTION}(q, t, v)")
    feeds = tensors()
    assert_pass(PASS, before, after, {**feeds, "k": feeds["k"].swapaxes(2, 3).copy()})


def test_one_head_of_three_axes() -> None:
    inputs = "float[B,T,8] q, float[B,S,8] k, float[B,S,8] v, bool[B,T,S] a"
    body = "kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) m = Where(a, s, least)"
    found = graph(inputs, f"{body} {END}", "float[B,T,8] y")
    feeds = {name: array[:, 0] for name, array in tensors().items()}
    assert fuse(found, {**feeds, "a": conditions(2, 5, 7)})[0].startswith("Attention, 1 heads")


@pytest.mark.parametrize("split", [False, True])
def test_heads_joined_with_the_batch(split: bool) -> None:
    """BART and BLOOM: products of three axes, and scores of four where the mask is added."""
    body = """tail = Shape<start=2>(q) whole = Concat<axis=0>(last, tail) q3 = Reshape(q, whole)
        ktail = Shape<start=2>(k) kwhole = Concat<axis=0>(last, ktail) k3 = Reshape(k, kwhole)
        v3 = Reshape(v, kwhole) kt = Transpose<perm=[0,2,1]>(k3) p = MatMul(q3, kt)
        s = Mul(p, scale) b4 = Constant<value_ints=[-1, 4]>() t = Shape<start=1>(s)
        full = Concat<axis=0>(b4, t) s4 = Reshape(s, full) m4 = Add(s4, a)
        flat = Concat<axis=0>(last, t) m = Reshape(m4, flat) w = Softmax(m) o = MatMul(w, v3)"""
    end = "ot = Shape<start=2>(q) of = Concat<axis=0>(b4, ot) y = Reshape(o, of)"
    inputs, outputs = f"{QKV}, float[B,1,T,S] a", OUT if split else "float[N,T,8] y"
    found = graph(inputs, f"{body} {end if split else 'y = Identity(o)'}", outputs)
    for name, shape in {
        "q3": ["4*B", "T", 8],
        "k3": ["4*B", "S", 8],
        "v3": ["4*B", "S", 8],
        "kt": ["4*B", 8, "S"],
        "p": ["4*B", "T", "S"],
        "s": ["4*B", "T", "S"],
        "s4": ["B", 4, "T", "S"],
        "m4": ["B", 4, "T", "S"],
        "m": ["4*B", "T", "S"],
        "w": ["4*B", "T", "S"],
        "o": ["4*B", "T", 8],
        "y": ["B", 4, "T", 8] if split else ["4*B", "T", 8],
    }.items():
        with_shapes(found, **{name: shape})
    assert fuse(found, {**tensors(), "a": floats(2, 1, 5, 7)}) == ["Attention, 4 heads, bias"]
    assert attention(found).inputs[0].name == "q"
    assert count_ops(found)["Reshape"] == (0 if split else 1)


@pytest.mark.parametrize("how", ["Split", "Slice", "Gather"])
def test_packed_projections(how: str) -> None:
    parts = {
        "Split": "q0, k0, v0 = Split<axis=-1, num_outputs=3>(x)",
        "Slice": " ".join(
            f"""b{i} = Constant<value_ints=[{i * 8}]>() e{i} = Constant<value_ints=[{i * 8 + 8}]>()
            {x}0 = Slice(x, b{i}, e{i}, last)"""
            for i, x in enumerate("qkv")
        ),
        "Gather": "pack = Constant<value_ints=[0,0,3,8]>() x3 = Reshape(x, pack) "
        + " ".join(
            f"i{i} = Constant<value = int64 {{{i}}}>() {x}0 = Gather<axis=2>(x3, i{i})"
            for i, x in enumerate("qkv")
        ),
    }
    heads = "shape = Constant<value_ints=[0,0,2,4]>() " + " ".join(
        f"{x}1 = Reshape({x}0, shape) {x} = Transpose<perm=[0,2,1,3]>({x}1)" for x in "qkv"
    )
    body = f"{parts[how]} {heads} {PRODUCT} m = Mul(s, scale) {END}"
    found = graph("float[B,T,24] x", body, "float[B,2,T,4] y")
    assert fuse(found, {"x": floats(2, 5, 24)}) == ["Attention, 2 heads"]
    assert count_ops(found)["Transpose"] == 3


# The past -----------------------------------------------------------------------------------------

PAST = (
    "float[B,4,T,8] q, float[B,4,P,8] pk, float[B,4,P,8] pv, float[B,4,T,8] nk, float[B,4,T,8] nv"
)
JOINED = "k = Concat<axis=2>(pk, nk) v = Concat<axis=-2>(pv, nv)"
PRESENTS = f"{OUT}, float[B,4,S,8] k, float[B,4,S,8] v"


def past_tensors(past: int, queries: int, batch: int = 2) -> dict[str, np.ndarray]:
    sizes = {"q": queries, "pk": past, "pv": past, "nk": queries, "nv": queries}
    return {name: floats(batch, 4, size, 8) for name, size in sizes.items()}


def test_a_past_is_absorbed() -> None:
    before = graph(PAST, f"{JOINED} {PRODUCT} w = Softmax(s) y = MatMul(w, v)", PRESENTS)
    after = graph(PAST, "y, k, v = Attention<scale=1.0>(q, nk, nv, , pk, pv)", PRESENTS)
    assert_pass(PASS, before, after, past_tensors(3, 5))


def test_a_past_can_be_left_outside() -> None:
    before = graph(PAST, f"{JOINED} {PRODUCT} w = Softmax(s) y = MatMul(w, v)", PRESENTS)
    after = graph(PAST, f"{JOINED} {ATTENTION}(q, k, v)", PRESENTS)
    assert_pass(FuseAttention(absorb_past=False), before, after, past_tensors(3, 5))


def test_a_past_that_the_mask_is_measured_by_stays_outside() -> None:
    body = f"""{JOINED} {PRODUCT} {SIZES} e = Expand(a, ts) m = Add(s, e)
        w = Softmax(m) y = MatMul(w, v)"""
    found = graph(f"{PAST}, float[1,1] a", body, PRESENTS)
    fuse(found, {**past_tensors(3, 5), "a": floats(1, 1)})
    assert count_ops(found)["Concat"] >= 2 and len(attention(found).outputs) == 1


@pytest.mark.parametrize(("past", "queries"), [(3, 5), (0, 5), (3, 1), (0, 1)])
def test_a_causal_mask_past_a_past_is_the_flag(past: int, queries: int) -> None:
    """And what the other targets make of it, a mask and a Concat, has the same numbers."""
    body = f"""{JOINED} {PRODUCT} z = Constant<value = int64 {{0}}>()
        one = Constant<value = int64 {{1}}>() ps = Shape<start=2, end=3>(pk) p = Squeeze(ps)
        ns = Shape<start=2, end=3>(nk) n = Squeeze(ns) total = Add(p, n) j = Range(z, total, one)
        r = Range(z, n, one) rp = Add(r, p) i = Unsqueeze(rp, n1) a = LessOrEqual(j, i)
        m = Where(a, s, least) w = Softmax(m) y = MatMul(w, v)"""
    feeds = past_tensors(past, queries, batch=1)
    found = graph(PAST, body, PRESENTS)
    expected = GraphRunner(found.clone()).run(feeds)
    assert fuse(found, feeds) == ["Attention, 4 heads, causal, past"]
    assert attention(found).attributes.get_int("is_causal") == 1
    run_passes(found, (LegalizeCausalMask(), LegalizeAttentionPast()))
    assert count_ops(found)["Concat"] == 2
    for name, deviation in deviations(GraphRunner(found).run(feeds), expected).items():
        assert deviation.within(EXACT), (name, deviation)
