"""fuse-norm: norms that are written out, in every spelling, become one op; or it says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.fuse_norm import FuseNorm
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

#: Written out in half, each of some ten steps rounds; the op rounds at its end.
HALF = Tolerance(rms=8 * 2.0**-11, peak=64 * 2.0**-11)
CONSTANTS = """last = Constant<value_ints=[-1]>()  two = Constant<value_float=2.0>()
    one = Constant<value_float=1.0>()  half = Constant<value_float=0.5>()
    minus = Constant<value_float=-0.5>()  eps = Constant<value_float=0.001>()"""
CENTRED = "m = ReduceMean<keepdims=1>(x, last)  c = Sub(x, m)"
MEAN = "a = ReduceMean<keepdims=1>(q, last)  v = Add(a, eps)"
POW, MUL = "q = Pow({c}, two)", "q = Mul({c}, {c})"
ROOTS = {
    "divided by the root": "r = Sqrt(v)  n = Div({c}, r)",
    "times the reciprocal": "r = Sqrt(v)  i = Reciprocal(r)  n = Mul({c}, i)",
    "the reciprocal first": "r = Sqrt(v)  i = Reciprocal(r)  n = Mul(i, {c})",
    "times one by the root": "r = Sqrt(v)  i = Div(one, r)  n = Mul({c}, i)",
    "power minus a half": "i = Pow(v, minus)  n = Mul({c}, i)",
    "divided by a power": "r = Pow(v, half)  n = Div({c}, r)",
}
ROOT = ROOTS["times the reciprocal"]
RMS = "y = RMSNormalization<axis=-1, epsilon=0.001, stash_type=1>(x, w)"
LAYER = "y = LayerNormalization<axis=-1, epsilon=0.001, stash_type=1>(x, w, b)"


def graph(*steps: str, centred: bool = False, dtype: str = "float", x: str = "B,T,8") -> Graph:
    """A Graph of x [B, T, 8], scale w [8] and bias b [8], its constants lifted."""
    body = "  ".join((CONSTANTS, *((CENTRED,) if centred else ()), *steps))
    text = f"g (float[{x}] x, float[8] w, float[8] b) => (float[{x}] y) {{ {body} }}"
    text = text.replace("{c}", "c" if centred else "x").replace("float[", f"{dtype}[")
    found = graph_from_text(text)
    run_passes(found, (EliminateDeadCode(), LiftConstants()))
    return found


def feeds(
    dtype: Any = np.float32, batch: int = 2, length: int = 3, mean: float = 1
) -> dict[str, Any]:
    rng = np.random.default_rng(batch + length)
    x = mean + rng.standard_normal((batch, length, 8))
    return {"x": x.astype(dtype), **{k: rng.standard_normal(8).astype(dtype) for k in "wb"}}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", [POW, MUL])
def test_fuse_norm_makes_an_rms_norm(square: str, root: str):
    before = graph(square, MEAN, ROOTS[root], "y = Mul(n, w)")
    assert_pass(FuseNorm(), before, graph(RMS), feeds())


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", [POW, MUL])
def test_fuse_norm_makes_a_layer_norm(square: str, root: str):
    before = graph(square, MEAN, ROOTS[root], "s = Mul(w, n)  y = Add(s, b)", centred=True)
    assert_pass(FuseNorm(), before, graph(LAYER), feeds())


def test_fuse_norm_takes_a_difference_that_is_computed_twice():
    again = "k = ReduceMean<keepdims=1>(x, last)  d = Sub(x, k)  q = Pow(d, two)"
    before = graph(again, MEAN, ROOT, "s = Mul(n, w)  y = Add(b, s)", centred=True)
    assert_pass(FuseNorm(), before, graph(LAYER), feeds())


def test_fuse_norm_takes_a_scale_that_is_multiplied_with_the_root():
    before = graph(POW, MEAN, "r = Sqrt(v)  i = Reciprocal(r)  f = Mul(i, w)  y = Mul(x, f)")
    assert_pass(FuseNorm(), before, graph(RMS), feeds())


@pytest.mark.parametrize(("centred", "op"), [(False, RMS), (True, LAYER.replace(", b)", ")"))])
def test_fuse_norm_without_a_scale_scales_by_ones(centred: bool, op: str):
    before = graph(POW, MEAN, ROOT.replace("n =", "y ="), centred=centred)
    run_passes(before, (FuseNorm(), LiftConstants()))
    ones = "w1 = Constant<value_floats=[1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0]>()"
    assert_pass(FuseNorm(), before, None, feeds())
    expected = graph(ones, op.replace(", w)", ", w1)"))
    np.testing.assert_allclose(
        GraphRunner(before).run(feeds())["y"], GraphRunner(expected).run(feeds())["y"], atol=1e-6
    )
    assert [node.op_type for node in before.graph] == [node.op_type for node in expected.graph]


def test_fuse_norm_with_a_bias_and_no_scale():
    before = graph(POW, MEAN, ROOT, "y = Add(n, b)", centred=True)
    given, runner = feeds(), GraphRunner(before.clone())
    run_passes(before, (FuseNorm(),))
    (node,) = [n for n in before.graph if n.op_type != "Constant"]
    assert (node.op_type, len(node.inputs)) == ("LayerNormalization", 3)
    np.testing.assert_allclose(
        GraphRunner(before).run(given)["y"], runner.run(given)["y"], atol=1e-5
    )


def test_fuse_norm_leaves_a_residual_sum_before_it_and_a_sum_after_an_rms_norm():
    residual = "h = Add(x, x)  q = Pow(h, two)"
    end = "r = Sqrt(v)  n = Div(h, r)  s = Mul(n, w)  y = Add(s, b)"
    after = graph("h = Add(x, x)", RMS.replace("(x", "(h").replace("y =", "s ="), "y = Add(s, b)")
    assert_pass(FuseNorm(), graph(residual, MEAN, end), after, feeds())


def test_fuse_norm_leaves_a_factor_that_differs_by_position():
    """Adaptive norms scale each token on its own: the factor stays a product after the op."""
    before = graph(POW, MEAN, ROOT, "t = Mul(x, w)  y = Mul(n, t)")
    expected = GraphRunner(before.clone()).run(feeds())["y"]
    run_passes(before, (FuseNorm(),))
    assert count_ops(before)["Mul"] == 2
    np.testing.assert_allclose(GraphRunner(before).run(feeds())["y"], expected, atol=1e-5)


def test_fuse_norm_over_two_axes():
    both = "axes = Constant<value_ints=[1, 2]>()  a = ReduceMean<keepdims=1>(q, axes)"
    before = graph_from_text(
        f"""g (float[N,4,8] x, float[4,8] w) => (float[N,4,8] y) {{ {CONSTANTS} q = Mul(x, x)
        {both}  v = Add(a, eps)  r = Sqrt(v)  n = Div(x, r)  y = Mul(n, w) }}"""
    )
    after = graph_from_text(
        """g (float[N,4,8] x, float[4,8] w) => (float[N,4,8] y)
        { y = RMSNormalization<axis=-2, epsilon=0.001, stash_type=1>(x, w) }"""
    )
    run_passes(before, (EliminateDeadCode(), LiftConstants()))
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((2, 4, 8)), "w": rng.standard_normal((4, 8))}
    given = {name: array.astype(np.float32) for name, array in given.items()}
    assert_pass(FuseNorm(), before, after, given)


# -- half graphs -----------------------------------------------------------------------------------

FROM_HALF = "f = Cast<to=1>(x)  q = Pow(f, two)"
ROOT_F = "r = Sqrt(v)  i = Reciprocal(r)  n = Mul(f, i)"


def test_fuse_norm_absorbs_the_casts_where_the_scale_comes_after_them():
    """Llama: weight * x_normalized.to(dtype)."""
    end = "h = Cast<to=10>(n)  y = Mul(w, h)"
    before = graph(FROM_HALF, MEAN, ROOT_F, end, dtype="float16")
    after = graph(RMS, dtype="float16")
    assert_pass(FuseNorm(), before, after, feeds(np.float16), tolerance=HALF)


def test_fuse_norm_keeps_the_casts_where_the_scale_comes_before_them():
    """Gemma: (x_normalized * (1 + weight.float())).to(dtype)."""
    end = "g = Cast<to=1>(w)  s = Mul(n, g)  y = Cast<to=10>(s)"
    before = graph(FROM_HALF, MEAN, ROOT_F, end, dtype="float16")
    op = RMS.replace("(x, w)", "(f, g)").replace("y =", "s =")
    after = graph(
        "f = Cast<to=1>(x)", "g = Cast<to=1>(w)", op, "y = Cast<to=10>(s)", dtype="float16"
    )
    assert_pass(FuseNorm(), before, after, feeds(np.float16), tolerance=HALF)


def test_fuse_norm_of_a_half_layer_norm():
    steps = "f = Cast<to=1>(x)  m = ReduceMean<keepdims=1>(f, last)  c = Sub(f, m)  q = Mul(c, c)"
    end = "r = Sqrt(v)  n = Div(c, r)  h = Cast<to=10>(n)  s = Mul(h, w)  y = Add(s, b)"
    before = graph(steps, MEAN, end, dtype="float16")
    after = graph(LAYER, dtype="float16")
    assert_pass(FuseNorm(), before, after, feeds(np.float16), tolerance=HALF)


# -- near misses -----------------------------------------------------------------------------------

MISSES = {
    "the epsilon is not a constant": (
        POW,
        "a = ReduceMean<keepdims=1>(q, last)  e = ReduceMax<keepdims=1>(w)",
        "v = Add(a, e)",
        ROOT,
    ),
    "the mean is not of squares": ("q = Abs({c})", MEAN, ROOT),
    "what is divided is not what was squared": (POW, MEAN, ROOT.replace("{c}", "e"), "e = Exp(x)"),
    "the mean is over axes [-2], not over the last ones": (
        POW,
        "axes = Constant<value_ints=[1]>()  a = ReduceMean<keepdims=1>(q, axes)  v = Add(a, eps)",
        ROOT,
    ),
    "the axes of the mean are not constant": (
        POW,
        "k = Shape<start=0, end=1>(w)  l = Sub(k, k)  o = Sub(l, one_i)",
        "one_i = Constant<value_ints=[1]>()",
        "a = ReduceMean<keepdims=1>(q, o)  v = Add(a, eps)",
        ROOT,
    ),
}


@pytest.mark.parametrize("reason", MISSES)
def test_fuse_norm_misses(reason: str):
    steps = list(MISSES[reason])
    if steps[-1].startswith("e = "):  # what is divided is made first
        steps.insert(0, steps.pop())
    if reason.startswith("the axes"):
        steps[1], steps[2] = steps[2], steps[1]
    assert_miss(FuseNorm(), graph(*steps, "y = Mul(n, w)"), reason)


def test_fuse_norm_misses_float64():
    steps = "f = Cast<to=11>(x)  p = Cast<to=11>(two)  e = Cast<to=11>(eps)  q = Pow(f, p)"
    mean = "a = ReduceMean<keepdims=1>(q, last)  v = Add(a, e)"
    before = graph(steps, mean, ROOT_F, "h = Cast<to=1>(n)  y = Mul(h, w)")
    from omnigraph.passes.fold_constants import FoldConstants

    run_passes(before, (FoldConstants(), EliminateDeadCode(), LiftConstants()))
    assert_miss(FuseNorm(), before, "computed in double, and the standard op computes in fp32")


def test_fuse_norm_misses_a_size_that_is_not_fixed_and_has_no_scale():
    before = graph(POW, MEAN, ROOT.replace("n =", "y ="), x="B,T,C")
    assert_miss(FuseNorm(), before, "the size of the axes normalized is not fixed")


# -- any of them -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    centred=st.booleans(),
    square=st.sampled_from([POW, MUL]),
    root=st.sampled_from(sorted(ROOTS.values())),
    scaled=st.booleans(),
    shifted=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(1, 5),
    mean=st.sampled_from([0.0, 1.0, -2.0]),
)
def test_fuse_norm_of_any_spelling_keeps_the_numbers(
    centred, square, root, scaled, shifted, batch, length, mean
):
    ends = ["u = Mul(n, w)" if scaled else "u = Identity(n)"]
    ends.append("y = Add(b, u)" if shifted else "y = Identity(u)")
    before = graph(square, MEAN, root, *ends, centred=centred)
    given_ = feeds(batch=batch, length=length, mean=mean)
    expected = GraphRunner(before.clone()).run(given_)
    (record,) = run_passes(before, (FuseNorm(),))
    assert record.modified
    assert not run_passes(before, (FuseNorm(),))[0].modified
    assert count_ops(before)["LayerNormalization" if centred else "RMSNormalization"] == 1
    # Differences from a mean of 2 lose up to two bits, and the two sides lose them apart.
    for found in deviations(GraphRunner(before).run(given_), expected).values():
        assert found.within(Tolerance(rms=32 * 2.0**-24, peak=256 * 2.0**-24))
