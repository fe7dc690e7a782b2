"""Node by node: the first node that computes otherwise is found, however small its part is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance
from omnigraph.graph import Graph
from omnigraph.inspection.node_by_node import NodeRunner, first_parted_node, showing_all
from omnigraph.testing import graph_from_text, graph_with_weights

FEEDS = {"x": np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)}
TOLERANCE = Tolerance(1e-6, 1e-5)
GRID = {"scale": np.float32(0.05), "zero": np.uint8(0)}


def quantized() -> Graph:
    return graph_with_weights(
        """g (float[N,3] x, float scale, uint8 zero) => (float[N,3] y)
        { a = Exp(x)  q = QuantizeLinear(a, scale, zero)  w = DequantizeLinear(q, scale, zero)
          b = Neg(w)  c = Tanh(w)  y = Add(b, c) }""",
        **{name: np.asarray(array) for name, array in GRID.items()},
    )


def node_named(graph: Graph, output: str) -> ir.Node:
    return next(node for node in graph.graph if node.outputs[0].name == output)


def test_equal_graphs_part_nowhere():
    graph = quantized()
    assert first_parted_node(graph, graph.clone(), [FEEDS], TOLERANCE) is None


def test_a_node_is_found_whose_part_in_the_output_is_lost():
    before = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { a = Exp(x)  b = Cos(a) z = Sub(b, b)  y = Add(z, x) }"
    )
    after = before.clone()
    node_named(after, "b").op_type = "Sin"
    outputs = [GraphRunner(graph).run(FEEDS)["y"] for graph in (before, after)]
    np.testing.assert_array_equal(*outputs)
    found = first_parted_node(before, after, [FEEDS], TOLERANCE)
    assert found is not None and found.op_type == "Sin"


def test_of_two_nodes_the_first_is_found():
    before = quantized()
    after = before.clone()
    node_named(after, "b").op_type = "Abs"
    node_named(after, "c").op_type = "Relu"
    found = first_parted_node(before, after, [FEEDS], TOLERANCE)
    assert found is not None and found.outputs[0].name == "b"


def test_a_node_that_is_new_counts_with_the_next_that_is_not():
    before = graph_from_text("g (float[N,3] x) => (float[N,3] y) { a = Exp(x)  y = Neg(a) }")
    after = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { a = Exp(x)  new = Relu(x)  y = Neg(new) }"
    )
    found = first_parted_node(before, after, [FEEDS], TOLERANCE)
    assert found is not None and found.outputs[0].name == "y"


def test_no_error_is_carried_through_a_quantizer():
    before = quantized()
    after = before.clone()
    scale = after.graph.initializers["scale"]
    scale.const_value = ir.tensor(np.float32(0.0501), name="scale")
    found = first_parted_node(before, after, [FEEDS], TOLERANCE)
    assert found is not None and found.op_type in ("QuantizeLinear", "DequantizeLinear")


def test_a_node_reads_what_was_recorded():
    graph = quantized()
    shown = {value.name or "" for value in showing_all(graph).graph.outputs}
    assert shown == {"a", "q", "w", "b", "c", "y"}
    recorded = GraphRunner(showing_all(graph)).run(FEEDS)
    recorded["w"] = np.ones_like(recorded["w"])
    found = NodeRunner(graph, shown).run(recorded, FEEDS)
    np.testing.assert_array_equal(found["b"], -recorded["w"])
    np.testing.assert_array_equal(found["y"], recorded["b"] + recorded["c"])


def test_half_types_are_compared_in_fp32_and_ways_to_hide_a_token_are_alike():
    before = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { low = Constant<value = float {-3.4e38}>() "
        "pos = Relu(x)  b = Min(pos, low)  y = Exp(b) }"
    )
    after = before.clone()
    node = node_named(after, "low")
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float32(-65504)))
    assert first_parted_node(before, after, [FEEDS], TOLERANCE) is None


def test_a_result_without_axes_is_recorded():
    before = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { s = ReduceSum<keepdims=0>(x) "
        "t = Neg(s)  y = Mul(x, t) }"
    )
    after = before.clone()
    node_named(after, "t").op_type = "Abs"
    found = first_parted_node(before, after, [FEEDS], TOLERANCE)
    assert found is not None and found.outputs[0].name == "t"
