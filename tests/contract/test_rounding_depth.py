"""How many roundings a Graph makes on its longest path, and how many terms its sums have."""

from __future__ import annotations

import pytest

from omnigraph.contract.graph_check import (
    longest_contraction,
    rounding_depth,
)
from omnigraph.testing import graph_from_text

DEPTHS = {
    "nothing": ("g (float[N] x) => (float[N] y) { y = Identity(x) }", 0),
    "one": ("g (float[N] x) => (float[N] y) { y = Add(x, x) }", 1),
    "a chain": ("g (float[N] x) => (float[N] y) { a = Add(x, x) b = Exp(a) y = Mul(b, x) }", 3),
    "the longer branch": (
        "g (float[N] x) => (float[N] y) { a = Exp(x) b = Sqrt(a) c = Tanh(x) y = Mul(b, c) }",
        3,
    ),
    "moves between": (
        "g (float[N] x) => (float[N] y) { a = Neg(x) b = Concat<axis = 0>(a, x) y = Relu(b) }",
        0,
    ),
    "integers": ("g (int64[N] x) => (int64[N] y) { a = Add(x, x) y = Mul(a, x) }", 0),
    "integers before": (
        "g (int64[N] x) => (float[N] y) { a = Add(x, x) b = Cast<to = 1>(a) y = Exp(b) }",
        1,
    ),
    "attention": (
        "g (float[B,2,T,8] q) => (float[B,2,T,8] y) { y = Attention(q, q, q) }",
        5,
    ),
    "a norm": (
        "g (float[N,8] x, float[8] s) => (float[N,8] y) { y = LayerNormalization(x, s) }",
        3,
    ),
    "the longer of two inner graphs": (
        """g (float[N] x, bool b) => (float[N] y) {
            a = Exp(x)
            y = If(b) <
                then_branch = t () => (float[N] p) { c = Exp(a) d = Sqrt(c) p = Tanh(d) },
                else_branch = e () => (float[N] q) { q = Exp(a) }
            >
        }""",
        4,
    ),
    "the steps of a recurrence": (
        "g (float[10,B,4] x, float[1,32,4] w, float[1,32,8] r) => (float[10,1,B,8] y) "
        "{ y = LSTM<hidden_size = 8>(x, w, r) }",
        60,
    ),
    "the turns of a loop": (
        """g (float[4] x, int64 m, bool b) => (float[4] y) {
            a = Exp(x)
            y = Loop(m, b, a) <body = t (int64 i, bool c, float[4] s) => (bool d, float[4] z) {
                d = Identity(c) e = Exp(s) z = Tanh(e)
            }>
        }""",
        129,
    ),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_roundings_on_the_longest_path(case: str):
    text, depth = DEPTHS[case]
    assert rounding_depth(graph_from_text(text)) == depth


SUMS = {
    "none": ("g (float[N] x) => (float[N] y) { y = Exp(x) }", 1),
    "a product": ("g (float[N,40] x, float[40,9] w) => (float[N,9] y) { y = MatMul(x, w) }", 40),
    "a product of many": (
        "g (float[N,3,40] x, float[3,40,9] w) => (float[N,3,9] y) { y = MatMul(x, w) }",
        40,
    ),
    "a turned weight": (
        """g (float[N,40] x, float[9,40] w) => (float[N,9] y) {
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, t)
        }""",
        40,
    ),
    "a product with a bias": (
        "g (float[N,40] x, float[40,9] w, float[9] b) => (float[N,9] y) { y = Gemm(x, w, b) }",
        40,
    ),
    "a product with a turned weight": (
        """g (float[N,40] x, float[9,40] w, float[9] b) => (float[N,9] y) {
            y = Gemm<transB = 1>(x, w, b)
        }""",
        40,
    ),
    "both turned": (
        """g (float[40,N] x, float[9,40] w) => (float[N,9] y) {
            y = Gemm<transA = 1, transB = 1>(x, w)
        }""",
        40,
    ),
    "the longest": (
        """g (float[N,40] x, float[40,90] w, float[90,5] v) => (float[N,5] y) {
            a = MatMul(x, w)
            y = MatMul(a, v)
        }""",
        90,
    ),
    "a recurrence": (
        "g (float[10,B,4] x, float[1,32,4] w, float[1,32,8] r) => (float[10,1,B,8] y) "
        "{ y = LSTM<hidden_size = 8>(x, w, r) }",
        8,
    ),
    "in an inner graph": (
        """g (float[N,40] x, float[40,9] w, bool b) => (float[N,9] y) {
            y = If(b) <
                then_branch = t () => (float[N,9] p) { p = MatMul(x, w) },
                else_branch = e () => (float[N,9] q) { c = MatMul(x, w) q = Exp(c) }
            >
        }""",
        40,
    ),
    "over an open dimension": (
        "g (float[B,S] x, float[B,S,T] v) => (float[B,B,T] y) { y = MatMul(x, v) }",
        64,
    ),
    "over an axis": (
        "g (float[N,7,30] x, int64[1] axes) => (float[N,7] y) "
        "{ y = ReduceSum<keepdims = 0>(x, axes) }",
        30,
    ),
    "over two axes that stay": (
        "g (float[N,7,30] x, int64[2] axes) => (float[N,1,1] y) { y = ReduceMean(x, axes) }",
        210,
    ),
    "over everything": (
        "g (float[N,3] x) => (float y) { y = ReduceMean<keepdims = 0>(x) }",
        192,
    ),
    "a convolution": (
        "g (float[N,6,T] x, float[4,6,5] k) => (float[N,4,U] y) { y = Conv(x, k) }",
        30,
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_terms_of_the_longest_sum(case: str):
    text, terms = SUMS[case]
    assert longest_contraction(graph_from_text(text)) == terms
