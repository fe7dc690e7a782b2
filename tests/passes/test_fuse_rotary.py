"""fuse-rotary: rotations of halves and of neighbours, whole and partial; or it says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.fuse_rotary import FuseRotary
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.passes.pipelines import canonical
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

TABLE = np.repeat(np.arange(10, dtype=np.float32)[:, None], 4, axis=1) * (0.1, 0.5, 0.7, 1.1)
CONSTANTS = """i0 = Constant<value_ints=[0]>()  i1 = Constant<value_ints=[1]>()
    i2 = Constant<value_ints=[2]>()  i4 = Constant<value_ints=[4]>()
    i8 = Constant<value_ints=[8]>()  last = Constant<value_ints=[-1]>()
    end = Constant<value_ints=[9223372036854775807]>()
    ones = Constant<value_ints=[1, 1]>()  minus = Constant<value_float=-1.0>()"""
#: From positions p [B, T] to the angles f [B, T, R/2] of each, and to those of both of a pair.
ANGLES = "q = Cast<to=1>(p)  u = Unsqueeze(q, i2)  f = Mul(u, frequencies)"
BESIDE = "g = Concat<axis=-1>(f, f)"
NEXT = """v = Unsqueeze(f, last)  w = Concat<axis=-1>(v, v)
    gs = Constant<value_ints=[0, 0, 8]>()  g = Reshape(w, gs)"""
TABLES = "c3 = Cos(g)  s3 = Sin(g)  c = Unsqueeze(c3, i1)  s = Unsqueeze(s3, i1)"
HALVES = "a = Slice(x, i0, i4, last)  b = Slice(x, i4, end, last)"
NEIGHBOURS = "a = Slice(x, i0, end, last, i2)  b = Slice(x, i1, end, last, i2)"
TURN = "n = Neg(b)  t = Concat<axis=-1>(n, a)"
TURN_PAIRS = """n = Neg(b)  n1 = Unsqueeze(n, last)  a1 = Unsqueeze(a, last)
    pairs = Concat<axis=-1>(n1, a1)  xs = Constant<value_ints=[0, 0, 0, 8]>()
    t = Reshape(pairs, xs)"""
SUM = "m = Mul(x, c)  o = Mul(t, s)  y = Add(m, o)"
FREQUENCIES = "frequencies = Constant<value_floats=[1.0, 0.5, 0.1, 0.02]>()"
EXPECTED = """cb = Cos(f)  sb = Sin(f)
    y = RotaryEmbedding<interleaved={interleaved}, rotary_embedding_dim={size}>(x, cb, sb)"""


def graph(*steps: str, x: str = "B,2,T,8", positions: str = "B,T", y: str = "") -> Graph:
    """A Graph of x [B, H, T, D] and positions p [B, T], its constants lifted."""
    body = "  ".join((CONSTANTS, FREQUENCIES, *steps))
    found = graph_from_text(
        f"g (float[{x}] x, int64[{positions}] p) => (float[{y or x}] y) {{ {body} }}"
    )
    run_passes(found, (EliminateDeadCode(), LiftConstants()))
    return found


def feeds(*shape: int, batch: int | None = None) -> dict[str, Any]:
    shape = shape or (3, 2, 5, 8)
    rng = np.random.default_rng(sum(shape))
    positions = rng.integers(0, 50, (shape[0] if batch is None else batch, shape[2]))
    return {"x": rng.standard_normal(shape).astype(np.float32), "p": positions}


def expected(interleaved: int = 0, size: int = 0) -> Graph:
    return graph(ANGLES, EXPECTED.format(interleaved=interleaved, size=size))


# -- each spelling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        SUM,
        "m = Mul(c, x)  o = Mul(s, t)  y = Add(m, o)",
        "m = Mul(c, x)  o = Mul(t, s)  y = Add(o, m)",
    ],
)
def test_fuse_rotary_of_halves(end: str):
    before = graph(ANGLES, BESIDE, TABLES, HALVES, TURN, end)
    assert_pass(FuseRotary(), before, expected(), feeds())


@pytest.mark.parametrize("turn", [TURN_PAIRS, TURN_PAIRS.replace("Neg(b)", "Mul(b, minus)")])
def test_fuse_rotary_of_neighbours(turn: str):
    before = graph(ANGLES, NEXT, TABLES, NEIGHBOURS, turn, SUM)
    assert_pass(FuseRotary(), before, expected(interleaved=1), feeds())


def test_fuse_rotary_takes_halves_that_are_split():
    split = "a, b = Split<axis=3, num_outputs=2>(x)"
    before = graph(ANGLES, BESIDE, TABLES, split, TURN, SUM)
    assert_pass(FuseRotary(), before, expected(), feeds())


def test_fuse_rotary_of_halves_that_are_turned_apart():
    """As OmniNet writes it, with cosines of half the features."""
    tables = "c3 = Cos(f)  s3 = Sin(f)  c = Unsqueeze(c3, i1)  s = Unsqueeze(s3, i1)"
    ends = """k = Mul(a, c)  l = Mul(s, b)  h1 = Sub(k, l)  m = Mul(b, c)  o = Mul(a, s)
        h2 = Add(m, o)"""
    before = graph(ANGLES, tables, HALVES, ends, "y = Concat<axis=-1>(h1, h2)")
    assert_pass(FuseRotary(), before, expected(), feeds())
    joined = """k1 = Unsqueeze(h1, last)  k2 = Unsqueeze(h2, last)  j = Concat<axis=-1>(k1, k2)
        xs = Constant<value_ints=[0, 0, 0, 8]>()  y = Reshape(j, xs)"""
    before = graph(ANGLES, tables, NEIGHBOURS, ends, joined)
    assert_pass(FuseRotary(), before, expected(interleaved=1), feeds())


def test_fuse_rotary_of_the_first_features():
    parts = """xr = Slice(x, i0, i8, last)  xp = Slice(x, i8, end, last)
        a = Slice(xr, i0, i4, last)  b = Slice(xr, i4, end, last)"""
    end = "m = Mul(xr, c)  o = Mul(t, s)  r = Add(m, o)  y = Concat<axis=-1>(r, xp)"
    before = graph(ANGLES, BESIDE, TABLES, parts, TURN, end, x="B,2,T,12")
    after = graph(ANGLES, EXPECTED.format(interleaved=0, size=8), x="B,2,T,12")
    assert_pass(FuseRotary(), before, after, feeds(3, 2, 5, 12))


def test_fuse_rotary_of_the_last_features_keeps_the_concatenation():
    parts = """xp = Slice(x, i0, i4, last)  xr = Slice(x, i4, end, last)
        a = Slice(xr, i0, i4, last)  b = Slice(xr, i4, end, last)"""
    end = "m = Mul(xr, c)  o = Mul(t, s)  r = Add(m, o)  y = Concat<axis=-1>(xp, r)"
    before = graph(ANGLES, BESIDE, TABLES, parts, TURN, end, x="B,2,T,12")
    op = EXPECTED.format(interleaved=0, size=0).replace("(x", "(xr").replace("y =", "r =")
    kept = "xp = Slice(x, i0, i4, last)  xr = Slice(x, i4, end, last)"
    after = graph(ANGLES, kept, op, "y = Concat<axis=-1>(xp, r)", x="B,2,T,12")
    assert_pass(FuseRotary(), before, after, feeds(3, 2, 5, 12))


# -- layouts, tables, batches ----------------------------------------------------------------------


def test_fuse_rotary_of_heads_after_positions_absorbs_the_transpose():
    tables = TABLES.replace("i1)", "i2)")
    end = SUM.replace("y =", "r =") + "  y = Transpose<perm=[0,2,1,3]>(r)"
    before = graph(ANGLES, BESIDE, tables, HALVES, TURN, end, x="B,T,2,8", y="B,2,T,8")
    op = EXPECTED.format(interleaved=0, size=0).replace("(x", "(z")
    swap = "z = Transpose<perm=[0,2,1,3]>(x)"
    after = graph(ANGLES, swap, op, x="B,T,2,8", y="B,2,T,8")
    given_ = feeds(3, 2, 5, 8)
    given_["x"] = given_["x"].swapaxes(1, 2).copy()
    assert_pass(FuseRotary(), before, after, given_)


def test_fuse_rotary_of_heads_after_positions_transposes_back_for_others():
    tables = TABLES.replace("i1)", "i2)")
    before = graph(ANGLES, BESIDE, tables, HALVES, TURN, SUM, x="B,T,2,8")
    given_ = feeds(3, 2, 5, 8)
    given_["x"] = given_["x"].swapaxes(1, 2).copy()
    want = GraphRunner(before.clone()).run(given_)["y"]
    assert run_passes(before, (FuseRotary(),))[0].modified
    assert not run_passes(before, (FuseRotary(),))[0].modified
    assert [n.op_type for n in before.graph][-2:] == ["RotaryEmbedding", "Transpose"]
    np.testing.assert_allclose(GraphRunner(before).run(given_)["y"], want, atol=1e-6)


@pytest.mark.parametrize("x", ["B,2,T,8", "3,2,T,8", "B,2,5,8"])
def test_fuse_rotary_repeats_positions_of_one_for_the_batch(x: str):
    """onnxruntime refuses caches of a batch of one for any other batch."""
    before = graph(ANGLES, BESIDE, TABLES, HALVES, TURN, SUM, x=x, positions=f"1,{x[4]}")
    given_ = feeds(3, 2, 5, 8, batch=1)
    want = GraphRunner(before.clone()).run(given_)["y"]
    assert run_passes(before, (FuseRotary(),))[0].modified
    assert count_ops(before)["Expand"] == 2
    np.testing.assert_allclose(GraphRunner(before).run(given_)["y"], want, atol=1e-6)
    (node,) = [n for n in before.graph if n.op_type == "RotaryEmbedding"]
    assert [str(node.inputs[i].shape) for i in (1, 2)] == [f"[{x[0]},{x[4]},4]"] * 2


def gathered(table: np.ndarray) -> Graph:
    """Cosines and sines from tables [10, 8], by position."""
    rows = "c3 = Gather(table, p)  s3 = Gather(table2, p)"
    views = "c = Unsqueeze(c3, i1)  s = Unsqueeze(s3, i1)"
    body = "  ".join((CONSTANTS, rows, views, HALVES, TURN, SUM))
    found = graph_from_text(
        f"""g (float[B,2,T,8] x, int64[B,T] p, float[10,8] table, float[10,8] table2)
        => (float[B,2,T,8] y) {{ {body} }}"""
    )
    for value, array in zip(found.graph.inputs[2:], (np.cos(table), table), strict=True):
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        found.graph.register_initializer(value)
        found.graph.inputs.remove(value)
    return found


def test_fuse_rotary_reads_a_table_to_see_that_its_halves_are_equal():
    before = gathered(np.concatenate([TABLE, TABLE], axis=-1))
    given_ = feeds()
    given_["p"] %= 10
    want = GraphRunner(before.clone()).run(given_)["y"]
    assert run_passes(before, (FuseRotary(), *canonical()))[0].modified
    ops = [node.op_type for node in before.graph]
    assert ops == ["Gather", "Gather", "RotaryEmbedding"]
    assert before.graph[0].inputs[0].shape == (10, 4)
    np.testing.assert_allclose(GraphRunner(before).run(given_)["y"], want, atol=1e-6)


def test_fuse_rotary_leaves_a_table_whose_halves_differ():
    before = gathered(np.concatenate([TABLE, 2 * TABLE], axis=-1))
    assert_miss(FuseRotary(), before, "not known to have the same cosine and sine")


# -- near misses -----------------------------------------------------------------------------------

MISSES = {
    "the two of a pair are not known to have the same cosine and sine": (
        (ANGLES, "e = Exp(f)  g = Concat<axis=-1>(f, e)", TABLES, HALVES, TURN, SUM),
        (ANGLES, BESIDE, TABLES, NEIGHBOURS, TURN_PAIRS, SUM),  # halves, and neighbours turned
        (ANGLES, NEXT, TABLES, HALVES, TURN, SUM),
    ),
    "what is rotated is not the x that is multiplied with the cosines": (
        (ANGLES, BESIDE, TABLES, HALVES, TURN, "z = Exp(x)", SUM.replace("Mul(x", "Mul(z")),
        (ANGLES, BESIDE, TABLES, HALVES, "n = Neg(a)  t = Concat<axis=-1>(n, b)", SUM),
    ),
    "the two halves are not a * cos - b * sin and b * cos + a * sin": (
        (
            ANGLES,
            "c3 = Cos(f)  s3 = Sin(f)  c = Unsqueeze(c3, i1)  s = Unsqueeze(s3, i1)",
            HALVES,
            "k = Mul(a, c)  l = Mul(b, s)  h1 = Sub(k, l)  m = Mul(b, c)  o = Mul(b, s)",
            "h2 = Add(m, o)  y = Concat<axis=-1>(h1, h2)",
        ),
    ),
    "cosines and sines are not one for each position": (
        (ANGLES, BESIDE, TABLES.replace("i1)", "i0)"), HALVES, TURN, SUM),
    ),
}


@pytest.mark.parametrize(
    ("reason", "steps"), [(r, s) for r, several in MISSES.items() for s in several]
)
def test_fuse_rotary_misses(reason: str, steps: tuple[str, ...]):
    axes = "2,2,T,8" if "i0)" in steps[2][-30:] else "B,2,T,8"
    before = graph(*steps, x=axes, positions=axes[0] + ",T")
    assert_miss(FuseRotary(), before, reason)


def test_fuse_rotary_misses_an_x_of_three_axes():
    tables = "c = Cos(g)  s = Sin(g)"
    before = graph(ANGLES, BESIDE, tables, HALVES, TURN, SUM, x="B,T,8")
    assert_miss(FuseRotary(), before, "axes of batch, heads, positions and features")


# -- any of them -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    interleaved=st.booleans(),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(1, 5),
    one=st.booleans(),
    half=st.booleans(),
)
def test_fuse_rotary_keeps_the_numbers(interleaved, batch, heads, length, one, half):
    parts = (NEXT, NEIGHBOURS, TURN_PAIRS) if interleaved else (BESIDE, HALVES, TURN)
    tables = TABLES
    if half:
        tables = """c4 = Cos(g)  s4 = Sin(g)  c3 = Cast<to=10>(c4)  s3 = Cast<to=10>(s4)
            c = Unsqueeze(c3, i1)  s = Unsqueeze(s3, i1)"""
    dtype = "float16" if half else "float"
    text = "  ".join((CONSTANTS, FREQUENCIES, ANGLES, parts[0], tables, *parts[1:], SUM))
    dims = f"B,{heads},T,8"
    before = graph_from_text(
        f"g ({dtype}[{dims}] x, int64[{1 if one else 'B'},T] p) => ({dtype}[{dims}] y) {{ {text} }}"
    )
    given_ = feeds(batch, heads, length, 8, batch=1 if one else None)
    given_["x"] = given_["x"].astype(np.float16 if half else np.float32)
    want = GraphRunner(before.clone()).run(given_)
    run_passes(before, (FuseRotary(),))
    assert count_ops(before)["RotaryEmbedding"] == 1
    assert not run_passes(before, (FuseRotary(),))[0].modified
    u = 2.0**-11 if half else 2.0**-24  # two products and a sum, each rounded or not
    for found in deviations(GraphRunner(before).run(given_), want).values():
        assert found.within(Tolerance(rms=4 * u, peak=16 * u))
