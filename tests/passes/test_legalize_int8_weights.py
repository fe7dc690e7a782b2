"""Every product of an int8 weight reads codes and zero points of its own."""

from __future__ import annotations

import numpy as np

from omnigraph.passes.legalize_int8_weights import LegalizeInt8Weights
from omnigraph.testing import assert_miss, assert_pass, graph_with_weights

PASS = LegalizeInt8Weights()
RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (4, 4)).astype(np.int8)
SCALES = RNG.uniform(0.01, 0.02, 4).astype(np.float32)
ZEROS = np.zeros(4, np.int8)
X = {"x": RNG.normal(size=(3, 4)).astype(np.float32)}


def test_two_products_of_one_weight() -> None:
    assert_pass(
        PASS,
        graph_with_weights(
            """g (float[B,4] x, int8[4,4] a, float[4] s) => (float[B,4] y) {
                w = DequantizeLinear<axis = 1>(a, s)
                h = MatMul(x, w)
                y = MatMul(h, w)
            }""",
            a=CODES,
            s=SCALES,
        ),
        graph_with_weights(
            """g (float[B,4] x, int8[4,4] a, int8[4,4] b, float[4] s, int8[4] z, int8[4] t) =>
                (float[B,4] y) {
                w = DequantizeLinear<axis = 1>(a, s, z)
                h = MatMul(x, w)
                v = DequantizeLinear<axis = 1>(b, s, t)
                y = MatMul(h, v)
            }""",
            a=CODES,
            b=CODES,
            s=SCALES,
            z=ZEROS,
            t=ZEROS,
        ),
        X,
    )


def test_a_weight_that_is_an_output_too() -> None:
    before = """g (float[B,4] x, int8[4,4] a, float[4] s) => (float[B,4] y, float[4,4] w) {
        w = DequantizeLinear<axis = 1>(a, s)
        y = MatMul(x, w)
    }"""
    after = """g (float[B,4] x, int8[4,4] a, int8[4,4] b, float[4] s, int8[4] z, int8[4] t) =>
        (float[B,4] y, float[4,4] w) {
        w = DequantizeLinear<axis = 1>(a, s, z)
        v = DequantizeLinear<axis = 1>(b, s, t)
        y = MatMul(x, v)
    }"""
    given = {"a": CODES, "s": SCALES}
    more = {"b": CODES, "z": ZEROS, "t": ZEROS}
    assert_pass(
        PASS, graph_with_weights(before, **given), graph_with_weights(after, **given, **more), X
    )


def test_codes_and_zero_points_of_two_nodes() -> None:
    before = """g (float[B,4] x, int8[4,4] a, float[4] s, int8[4] z) => (float[B,4] y) {
        w = DequantizeLinear<axis = 1>(a, s, z)
        h = MatMul(x, w)
        v = DequantizeLinear<axis = 0>(a, s, z)
        t = Transpose<perm = [1, 0]>(v)
        y = MatMul(h, t)
    }"""
    after = """g (float[B,4] x, int8[4,4] a, int8[4,4] b, float[4] s, int8[4] z, int8[4] q) =>
        (float[B,4] y) {
        w = DequantizeLinear<axis = 1>(b, s, q)
        h = MatMul(x, w)
        v = DequantizeLinear<axis = 0>(a, s, z)
        t = Transpose<perm = [1, 0]>(v)
        y = MatMul(h, t)
    }"""
    given = {"a": CODES, "s": SCALES, "z": ZEROS + 3}
    more = {"b": CODES, "q": ZEROS + 3}
    assert_pass(
        PASS, graph_with_weights(before, **given), graph_with_weights(after, **given, **more), X
    )


def test_what_is_separate_stays() -> None:
    text = """g (int8[4,4] a, float[4] s, int8[4] z) => (float[4,4] y) {
        y = DequantizeLinear<axis = 1>(a, s, z)
    }"""
    assert not list(PASS.sites(graph_with_weights(text, a=CODES, s=SCALES, z=ZEROS)))


def test_one_scale_has_one_zero_point() -> None:
    text = "g (int8[4,4] a, float s{0}) => (float[4,4] y) {{ y = DequantizeLinear(a, s{1}) }}"
    given = {"a": CODES, "s": np.float32(0.5)}
    assert_pass(
        PASS,
        graph_with_weights(text.format("", ""), **given),
        graph_with_weights(text.format(", int8 z", ", z"), **given, z=np.int8(0)),
        {},
    )


def test_scales_that_are_computed_are_left() -> None:
    text = """g (int8[4,4] a, float[4] s) => (float[4,4] y) {
        y = DequantizeLinear<axis = 1>(a, s)
    }"""
    assert_miss(PASS, graph_with_weights(text, a=CODES), "no constants")
