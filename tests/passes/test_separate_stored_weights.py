"""Every product of a weight of integers reads codes, scales and zero points of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.passes.base import run_passes
from omnigraph.passes.separate_stored_weights import SeparateStoredWeights
from omnigraph.testing import assert_miss, assert_pass, graph_with_weights

PASS = SeparateStoredWeights()
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


def own_inputs(text: str, **weights: np.ndarray | ir.TensorProtocol) -> list[list[str | None]]:
    graph = graph_with_weights(text, **weights)
    assert all(record.modified for record in run_passes(graph, (PASS,)))
    assert not list(PASS.sites(graph))
    nodes = [node for node in graph.graph if node.op_type == "DequantizeLinear"]
    return [[v.name for v in node.inputs if v is not None] for node in nodes]


def test_no_two_products_share_an_initializer() -> None:
    found = own_inputs(
        """g (float[B,4] x, uint8[4,4] a, float[4] s, uint8[4] z) => (float[B,4] y) {
            w = DequantizeLinear<axis = 1>(a, s, z)
            h = MatMul(x, w)
            y = MatMul(h, w)
        }""",
        a=CODES.view(np.uint8),
        s=SCALES,
        z=np.full(4, 7, np.uint8),
    )
    assert len(found) == 2 and len({name for names in found for name in names}) == 6


def test_logits_have_scales_beside_those_that_an_embedding_looks_up() -> None:
    text = """g (int64[T] ids, int8[6,4] a, float[6] s) => (float[T,6] y) {
        r = Gather(a, ids)  f = Cast<to = 1>(r)  k = Gather(s, ids)
        last = Constant<value_ints = [-1]>()  u = Unsqueeze(k, last)  h = Mul(f, u)
        w = DequantizeLinear<axis = 0>(a, SCALES, ZEROS)
        t = Transpose<perm = [1, 0]>(w)
        y = MatMul(h, t)
    }"""
    given = {
        "a": RNG.integers(-127, 128, (6, 4)).astype(np.int8),
        "s": RNG.uniform(0.01, 0.02, 6).astype(np.float32),
        "z": np.zeros(6, np.int8),
    }
    before = text.replace("SCALES", "s").replace("ZEROS", "z")
    before = before.replace("float[6] s)", "float[6] s, int8[6] z)")
    after = text.replace("SCALES", "s_1").replace("ZEROS", "z")
    after = after.replace("float[6] s)", "float[6] s, float[6] s_1, int8[6] z)")
    assert_pass(
        PASS,
        graph_with_weights(before, **given),
        graph_with_weights(after, **given, s_1=given["s"]),
        {"ids": np.array([0, 5, 2])},
    )
    ((codes, scales, zeros),) = own_inputs(before, **given)
    assert (codes, scales, zeros) == ("a", "s_1", "z")
