"""The integers of a weight are transposed, and not the weight that they make."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.ledger.precision import layer_precisions
from omnigraph.passes.base import run_passes
from omnigraph.passes.emulate_group_quantization import EmulateGroupQuantization
from omnigraph.passes.transpose_stored_weights import TransposeStoredWeights
from omnigraph.testing import assert_pass, graph_with_weights

PASS = TransposeStoredWeights()
RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (6, 32)).astype(np.int8)
SCALES = RNG.uniform(0.01, 0.02, 6).astype(np.float32)
X = {"x": RNG.standard_normal((3, 32)).astype(np.float32)}
GIVEN = {"a": CODES, "s": SCALES}
HEAD = "g (float[B,32] x, int8[6,32] a, float[6] s{more}) => (float[B,6] y) "


def test_a_transposed_weight() -> None:
    before = """{ w = DequantizeLinear<axis = 0>(a, s) t = Transpose<perm = [1, 0]>(w)
        y = MatMul(x, t) }"""
    after = """{ t = Transpose<perm = [1, 0]>(a) w = DequantizeLinear<axis = 1>(t, s)
        y = MatMul(x, w) }"""
    head = HEAD.format(more="")
    graph = graph_with_weights(head + after, **GIVEN)
    assert_pass(PASS, graph_with_weights(head + before, **GIVEN), graph, X)
    (row,) = layer_precisions(graph)
    assert row.weights == "int8"
    assert EmulateGroupQuantization()(graph).modified


def test_a_product_that_transposes() -> None:
    before = "{ w = DequantizeLinear<axis = 0>(a, s) y = Gemm<transB = 1>(x, w, b) }"
    after = """{ t = Transpose<perm = [1, 0]>(a) w = DequantizeLinear<axis = 1>(t, s)
        y = Gemm<transB = 0>(x, w, b) }"""
    head, given = HEAD.format(more=", float[6] b"), {**GIVEN, "b": SCALES}
    assert_pass(
        PASS,
        graph_with_weights(head + before, **given),
        graph_with_weights(head + after, **given),
        X,
    )


@pytest.mark.parametrize("kind", ["uint4", "int4", "uint8"])
def test_scales_of_blocks(kind: str) -> None:
    dtype = {"uint4": ml_dtypes.uint4, "int4": ml_dtypes.int4, "uint8": np.uint8}[kind]
    graph = graph_with_weights(
        f"""g (float[B,32] x, {kind}[6,32] a, float[6,2] s, {kind}[6,2] z) => (float[B,6] y) {{
            w = DequantizeLinear<axis = 1, block_size = 16>(a, s, z)
            y = Gemm<transB = 1>(x, w)
        }}""",
        a=RNG.integers(0, 8, (6, 32)).astype(dtype),
        s=RNG.uniform(0.01, 0.02, (6, 2)).astype(np.float32),
        z=RNG.integers(0, 8, (6, 2)).astype(dtype),
    )
    expected = GraphRunner(graph.clone()).run(X)["y"]
    assert run_passes(graph, (PASS,))[0].modified
    assert [n.op_type for n in graph.graph] == [*["Transpose"] * 3, "DequantizeLinear", "Gemm"]
    np.testing.assert_allclose(GraphRunner(graph).run(X)["y"], expected, rtol=1e-5, atol=1e-5)


def test_what_something_else_reads_stays() -> None:
    text = """{ w = DequantizeLinear<axis = 0>(a, s) t = Transpose<perm = [1, 0]>(w)
        h = MatMul(x, t) i = MatMul(h, w) y = MatMul(i, t) }"""
    assert not list(PASS.sites(graph_with_weights(HEAD.format(more="") + text, **GIVEN)))
