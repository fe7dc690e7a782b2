"""RemoveRounding: the arithmetic of a Graph in fp32, on the weights as they are stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.graph import Graph, count_ops
from omnigraph.lowering import find_target
from omnigraph.passes.base import run_passes
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.remove_rounding import RemoveRounding
from omnigraph.testing import graph_from_text, graph_with_weights

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((32, 24)).astype(np.float32)
BIAS = RNG.standard_normal(24).astype(np.float32)
X = RNG.standard_normal((5, 32)).astype(np.float32)


def linear() -> Graph:
    text = """g (float[N,32] x, float[32,24] w, float[24] b) => (float[N,24] y) {
        h = MatMul(x, w) y = Add(h, b) }"""
    return graph_with_weights(text, w=WEIGHT, b=BIAS)


def outputs(graph: Graph) -> np.ndarray:
    return GraphRunner(graph).run({"x": X})["y"]


def test_a_graph_in_float_is_left_alone():
    graph = linear()
    assert not RemoveRounding()(graph).modified


@pytest.mark.parametrize("dynamic", [False, True])
def test_quantized_activations_are_read_as_they_are(dynamic: bool):
    grid = (
        "q, s, z = DynamicQuantizeLinear(x)"
        if dynamic
        else "s = Constant<value_float = 0.05>() q = QuantizeLinear<output_dtype = 3>(x, s)"
    )
    dequantized = "DequantizeLinear(q, s, z)" if dynamic else "DequantizeLinear(q, s)"
    graph = graph_from_text(f"g (float[N,32] x) => (float[N,32] y) {{ {grid} y = {dequantized} }}")
    assert not np.array_equal(outputs(graph), X)
    assert RemoveRounding()(graph).modified
    check_graph(graph, "remove-rounding")
    np.testing.assert_array_equal(outputs(graph), X)
    assert not RemoveRounding()(graph).modified


def test_integers_that_are_moved_are_moved_as_floats():
    graph = graph_from_text(
        """g (float[N,32] x) => (float[N,32] y) { s = Constant<value_float = 0.05>()
        shape = Constant<value_ints = [-1, 4, 8]>() back = Constant<value_ints = [-1, 32]>()
        q = QuantizeLinear<output_dtype = 3>(x, s) r = Reshape(q, shape)
        t = Transpose<perm = [0, 2, 1]>(r) u = Transpose<perm = [0, 2, 1]>(t)
        f = Reshape(u, back) y = DequantizeLinear(f, s) }"""
    )
    RemoveRounding()(graph)
    check_graph(graph, "remove-rounding")
    np.testing.assert_array_equal(outputs(graph), X)


def test_what_is_multiplied_as_integers_stays():
    graph = graph_from_text(
        """g (float[N,32] x) => (int32[N,N] y) { q, s, z = DynamicQuantizeLinear(x)
        t = Transpose(q) y = MatMulInteger(q, t, z, z) }"""
    )
    assert not RemoveRounding()(graph).modified


def test_weights_stay_as_they_are_stored():
    graph = linear()
    scheme = find_target("onnx").schemes["int8-dynamic"]
    run_passes(graph, [InsertQdq(scheme=scheme)])
    assert RemoveRounding()(graph).modified
    ops = count_ops(graph)
    assert ops["DequantizeLinear"] == 1 and ops["DynamicQuantizeLinear"] == 0
    stored = graph.graph.initializers["w_int8"].const_value
    scales = graph.graph.initializers["w_int8_scale"].const_value
    assert stored is not None and scales is not None
    wide = stored.numpy().astype(np.float32) * scales.numpy()
    np.testing.assert_allclose(outputs(graph), X @ wide + BIAS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_are_computed_in_fp32_on_half_weights(precision: str):
    graph = linear()
    run_passes(graph, [ConvertPrecision(precision)])
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    half = graph.graph.initializers["w"].dtype
    assert half in halves
    assert RemoveRounding()(graph).modified
    check_graph(graph, "remove-rounding")
    wide = WEIGHT.astype(half.numpy()).astype(np.float32)
    bias = BIAS.astype(half.numpy()).astype(np.float32)
    np.testing.assert_allclose(outputs(graph), X @ wide + bias, rtol=1e-5, atol=1e-5)
    assert not any(v.dtype in halves for node in graph.graph for v in node.outputs)
    assert not RemoveRounding()(graph).modified
