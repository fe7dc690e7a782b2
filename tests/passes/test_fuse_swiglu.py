"""fuse-swiglu: SiLU becomes Swish, packed halves one Split; or it says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.fuse_swiglu import FuseSwiglu
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

CONSTANTS = """zero = Constant<value_ints=[0]>()  four = Constant<value_ints=[4]>()
    six = Constant<value_ints=[6]>()  end = Constant<value_ints=[9223372036854775807]>()
    last = Constant<value_ints=[-1]>()  three = Constant<value_float=3.0>()"""
FIRST, SECOND = "a = Slice(p, zero, four, last)", "b = Slice(p, four, end, last)"
SPLIT = "a, b = Split<axis=-1, num_outputs=2>(p)"


def graph(*steps: str, y: int = 4) -> Graph:
    """A Graph of p [B, T, 8] and x, u [B, T, 4], its constants lifted."""
    body = "  ".join((CONSTANTS, *steps))
    found = graph_from_text(
        f"""g (float[B,T,8] p, float[B,T,4] x, float[B,T,4] u) => (float[B,T,{y}] y)
        {{ {body} }}"""
    )
    run_passes(found, (EliminateDeadCode(), LiftConstants()))
    return found


def feeds(batch: int = 2, length: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(batch + length)
    shapes = {"p": (batch, length, 8), "x": (batch, length, 4), "u": (batch, length, 4)}
    return {k: (2 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("product", ["y = Mul(x, s)", "y = Mul(s, x)"])
def test_fuse_swiglu_makes_a_swish_of_silu(product: str):
    before = graph("s = Sigmoid(x)", product)
    assert_pass(FuseSwiglu(), before, graph("y = Swish<alpha=1.0>(x)"), feeds())


def test_fuse_swiglu_keeps_the_product_with_the_other_projection():
    before = graph("s = Sigmoid(x)  g = Mul(x, s)  y = Mul(g, u)")
    after = graph("g = Swish<alpha=1.0>(x)  y = Mul(g, u)")
    assert_pass(FuseSwiglu(), before, after, feeds())


def test_fuse_swiglu_takes_the_product_with_the_other_projection_first():
    """It is a product of three: the Swish is taken where gate and sigmoid meet."""
    before = graph("s = Sigmoid(x)  g = Mul(u, x)  y = Mul(g, s)")
    assert_miss(FuseSwiglu(), before, "the result is not x * sigmoid(x)")


def test_fuse_swiglu_of_a_multiple():
    before = graph("m = Mul(x, three)  s = Sigmoid(m)  y = Mul(x, s)")
    assert_pass(FuseSwiglu(), before, graph("y = Swish<alpha=3.0>(x)"), feeds())


@pytest.mark.parametrize(("gate", "up"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST)])
def test_fuse_swiglu_splits_a_packed_gate(order: tuple[str, str], gate: str, up: str):
    before = graph(*order, f"s = Sigmoid({gate})  g = Mul({gate}, s)  y = Mul(g, {up})")
    after = graph(SPLIT, f"g = Swish<alpha=1.0>({gate})  y = Mul(g, {up})")
    assert_pass(FuseSwiglu(), before, after, feeds())


def test_fuse_swiglu_splits_a_packed_gate_that_is_sliced_late():
    before = graph(FIRST, "s = Sigmoid(a)  g = Mul(a, s)", SECOND, "y = Mul(g, b)")
    after = graph(SPLIT, "g = Swish<alpha=1.0>(a)  y = Mul(g, b)")
    assert_pass(FuseSwiglu(), before, after, feeds())


def test_fuse_swiglu_splits_the_gate_of_a_geglu():
    before = graph(FIRST, SECOND, "g = Gelu(b)  y = Mul(a, g)")
    assert_pass(FuseSwiglu(), before, graph(SPLIT, "g = Gelu(b)  y = Mul(a, g)"), feeds())


def test_fuse_swiglu_leaves_a_split():
    before = graph(SPLIT, "g = Gelu(b)  y = Mul(a, g)")
    assert_pass(FuseSwiglu(), before, None, feeds())


def test_fuse_swiglu_leaves_slices_that_are_no_halves():
    steps = "a = Slice(p, zero, four, last)  c = Slice(p, zero, four, last)  g = Gelu(a)"
    assert_pass(FuseSwiglu(), graph(steps, "y = Mul(g, c)"), None, feeds())


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (("s = Sigmoid(x)  y = Mul(u, s)",), "what it is multiplied with is something else"),
        (("s = Sigmoid(x)  g = Mul(x, s)  y = Add(g, s)",), "2 nodes read a part of it"),
        (
            ("m = Mul(x, x)  s = Sigmoid(m)  y = Mul(x, s)",),
            "what it is multiplied with is something else",
        ),
    ],
)
def test_fuse_swiglu_misses(steps: tuple[str, ...], reason: str):
    assert_miss(FuseSwiglu(), graph(*steps), reason)


@settings(max_examples=15, deadline=None)
@given(
    gate=st.sampled_from("ab"),
    late=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(0, 4),
)
def test_fuse_swiglu_keeps_the_numbers(gate, late, batch, length):
    up = {"a": "b", "b": "a"}[gate]
    activation = f"s = Sigmoid({gate})  g = Mul({gate}, s)"
    before = graph(FIRST, SECOND, activation, f"y = Mul(g, {up})")
    given_ = feeds(batch, length)
    expected = GraphRunner(before.clone()).run(given_)
    assert run_passes(before, (FuseSwiglu(),))[0].modified
    for found in deviations(GraphRunner(before).run(given_), expected).values():
        assert found.rms < 1e-6
