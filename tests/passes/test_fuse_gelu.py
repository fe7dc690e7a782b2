"""fuse-gelu: Gelu by erf, by tanh and by a sigmoid, in any spelling; or it says why not."""

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
from omnigraph.passes.fuse_gelu import FuseGelu
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

#: 1 + erf(x) cancels where x is negative, and the runtimes' erf and tanh are polynomials of their
#: own: the difference is a few roundings of 1, and outputs there are far smaller than 1.
TOLERANCE = Tolerance(rms=16 * 2.0**-24, peak=128 * 2.0**-24)
NUMBERS = {
    "root": 2**0.5,
    "inverse": 0.5**0.5,
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "cubic": 0.044715,
    "slope": (2 / np.pi) ** 0.5,
    "both": 0.044715 * (2 / np.pi) ** 0.5,
    "quick": 1.702,
    "far": 1.7,
}
CONSTANTS = "  ".join(f"{k} = Constant<value_float={v:.9f}>()" for k, v in NUMBERS.items())

SCALED = {"a quotient": "s = Div(x, root)", "a product": "s = Mul(inverse, x)"}
CUBES = {
    "a power": "c = Pow(x, three)",
    "the square first": "q = Mul(x, x)  c = Mul(q, x)",
    "the square as a power": "q = Pow(x, two)  c = Mul(x, q)",
}
TANH = {
    "GPT-2": "k = Mul(c, cubic)  p = Add(x, k)  s = Mul(p, slope)",
    "the slope inside": "k = Mul(both, c)  l = Mul(x, slope)  s = Add(l, k)",
}
FACTORED = "q = Mul(x, x)  k = Mul(cubic, q)  p = Add(k, one)  l = Mul(slope, x)  s = Mul(l, p)"
ENDS = {
    "half of x": "a = Add(f, one)  h = Mul(x, half)  y = Mul(h, a)",
    "half of the sum": "a = Add(one, f)  h = Mul(half, a)  y = Mul(x, h)",
    "half at the end": "a = Add(f, one)  h = Mul(x, a)  y = Mul(h, half)",
    "a quotient at the end": "a = Add(f, one)  h = Mul(a, x)  y = Div(h, two)",
    "a sum of any number": "a = Sum(one, f)  h = Mul(x, half)  y = Mul(h, a)",
    "half of each": "g = Mul(f, half)  a = Add(g, half)  y = Mul(a, x)",
    "without brackets": "h = Mul(x, half)  g = Mul(h, f)  y = Add(h, g)",
}


def graph(*steps: str, dtype: str = "float") -> Graph:
    """A Graph of x [B, T, 8], its constants lifted, and those that nothing reads left out."""
    body = "  ".join((CONSTANTS, *steps))
    found = graph_from_text(f"g ({dtype}[B,T,8] x) => ({dtype}[B,T,8] y) {{ {body} }}")
    run_passes(found, (EliminateDeadCode(), LiftConstants()))
    return found


def feeds(batch: int = 2, length: int = 3, spread: float = 2) -> dict[str, Any]:
    rng = np.random.default_rng(batch + length)
    return {"x": (spread * rng.standard_normal((batch, length, 8))).astype(np.float32)}


def check(before: Graph, op: str) -> None:
    assert_pass(FuseGelu(), before, graph(f"y = {op}"), feeds(), tolerance=TOLERANCE)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scaled", SCALED)
def test_fuse_gelu_by_erf(scaled: str, end: str):
    before = graph(SCALED[scaled], "f = Erf(s)", ENDS[end])
    check(before, 'Gelu<approximate="none">(x)')


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("tanh", TANH)
@pytest.mark.parametrize("cube", CUBES)
def test_fuse_gelu_by_tanh(cube: str, tanh: str, end: str):
    before = graph(CUBES[cube], TANH[tanh], "f = Tanh(s)", ENDS[end])
    check(before, 'Gelu<approximate="tanh">(x)')


@pytest.mark.parametrize("end", ENDS)
def test_fuse_gelu_by_tanh_with_x_taken_out(end: str):
    check(graph(FACTORED, "f = Tanh(s)", ENDS[end]), 'Gelu<approximate="tanh">(x)')


@pytest.mark.parametrize("end", ["y = Mul(x, f)", "y = Mul(f, x)"])
def test_fuse_gelu_quick(end: str):
    before = graph("s = Mul(x, quick)  f = Sigmoid(s)", end)
    check(before, "Swish<alpha=1.702>(x)")


def test_fuse_gelu_of_a_biased_sum():
    """x is itself a sum and a product: the nearest value of which all is made is taken."""
    sum_of = "e = Exp(x)  z = Add(e, x)  m = Mul(z, half)"
    end = ENDS["half of x"].replace("Mul(x", "Mul(m")
    before = graph(sum_of, SCALED["a quotient"].replace("(x", "(m"), "f = Erf(s)", end)
    after = graph(sum_of, 'y = Gelu<approximate="none">(m)')
    assert_pass(FuseGelu(), before, after, feeds(), tolerance=TOLERANCE)


def test_fuse_gelu_in_half():
    """Constants are rounded to half, and so is each step; the op rounds at its end."""
    halves = "  ".join(f"{name}_h = Cast<to=10>({name})" for name in ("root", "half", "one"))
    steps = "s = Div(x, root_h)  f = Erf(s)  a = Add(f, one_h)  h = Mul(x, half_h)  y = Mul(h, a)"
    before = graph(halves, steps, dtype="float16")
    from omnigraph.passes.fold_constants import FoldConstants

    run_passes(before, (FoldConstants(), EliminateDeadCode(), LiftConstants()))
    after = graph('y = Gelu<approximate="none">(x)', dtype="float16")
    given_ = {"x": feeds()["x"].astype(np.float16)}
    tolerance = Tolerance(rms=8 * 2.0**-11, peak=64 * 2.0**-11)
    assert_pass(FuseGelu(), before, after, given_, tolerance=tolerance)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (("s = Div(x, two)  f = Erf(s)", ENDS["half of x"]), "Erf is not of x / sqrt(2)"),
        (
            (SCALED["a product"], "f = Erf(s)  a = Add(f, one)  y = Mul(x, a)"),
            "the result is not x * 0.5 * (1 + erf)",
        ),
        (
            (SCALED["a product"], "f = Erf(s)  e = Exp(x)", ENDS["half of x"].replace("x", "e")),
            "the result is not x * 0.5 * (1 + erf)",
        ),
        (
            (
                CUBES["a power"],
                TANH["GPT-2"].replace("cubic", "half"),
                "f = Tanh(s)",
                ENDS["half of x"],
            ),
            "Tanh is not of sqrt(2 / pi) * (x + 0.044715 * x^3)",
        ),
        (
            (
                SCALED["a product"],
                "f = Erf(s)  a = Add(f, one)  h = Mul(x, half)  g = Mul(h, a)  y = Mul(g, f)",
            ),
            "2 nodes read a part of it",
        ),
        (("s = Mul(x, far)  f = Sigmoid(s)  y = Mul(x, f)",), "Sigmoid is not of 1.702 * x"),
        (("s = Mul(x, quick)  f = Sigmoid(s)  e = Exp(x)  y = Mul(e, f)",), "the result is not x"),
    ],
)
def test_fuse_gelu_misses(steps: tuple[str, ...], reason: str):
    assert_miss(FuseGelu(), graph(*steps), reason)


def test_fuse_gelu_looks_at_no_other_tanh():
    """That of BERT's pooler, or a soft cap of scores."""
    before = graph("t = Tanh(x)  d = Div(t, three)  u = Tanh(d)  y = Mul(u, three)")
    (record,) = run_passes(before, (FuseGelu(),))
    assert record.findings == ()


@settings(max_examples=25, deadline=None)
@given(
    inner=st.sampled_from(
        [
            *(f"{s}  f = Erf(s)" for s in SCALED.values()),
            *(f"{c}  {t}  f = Tanh(s)" for c in CUBES.values() for t in TANH.values()),
        ]
    ),
    end=st.sampled_from(sorted(ENDS.values())),
    batch=st.integers(1, 3),
    length=st.integers(0, 5),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_fuse_gelu_keeps_the_numbers(inner, end, batch, length, spread):
    before, given_ = graph(inner, end), feeds(batch, length, spread)
    expected = GraphRunner(before.clone()).run(given_)
    assert run_passes(before, (FuseGelu(),))[0].modified
    assert not run_passes(before, (FuseGelu(),))[0].modified
    assert count_ops(before) == {"Gelu": 1}
    for found in deviations(GraphRunner(before).run(given_), expected).values():
        assert found.within(TOLERANCE)
